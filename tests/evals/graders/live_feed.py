"""A live feed in which nobody misses an event, and nobody gets one twice."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx2

from tests.evals.harness import App, Grader, check, during

RING = 1000
BAD: list[Any] = [{"text": ""}, {"text": "x" * 501}, {}, {"text": 5}, []]


class Event(NamedTuple):
    """One event as EventSource sees it."""

    id: str
    type: str
    data: str

    @property
    def text(self) -> object:
        """What was published."""
        return json.loads(self.data)["text"]


class Task(Grader):
    """See `live_feed` in `evals.json`."""

    @check("Readers get every event, in order, with the id that its sender was told")
    async def happy(self) -> None:
        texts = ["first", "two\nlines", "zwölf 🎉"]
        async with live(self.app) as one, live(self.app) as two:
            ids = [await publish(self.app, text) for text in texts]
            for reader in (one, two):
                events = [await reader.of_type("message") for _ in texts]
                found = [event.text for event in events]
                assert found == texts, f"{texts} expected, got {found}"
                assert [event.id for event in events] == ids, "the ids differ"

    @check("A bad event is answered with 422 and reaches nobody")
    async def bad(self) -> None:
        async with live(self.app) as reader, self.app.client() as client:
            for body in BAD:
                status = (await client.post("/events", json=body)).status_code
                assert status == 422, f"{str(body)[:30]} is answered with {status}"
            await publish(self.app, "good")
            found = (await reader.of_type("message")).text
            assert found == "good", f"a reader got {found!r}"

    @check("Who reconnects gets what it missed, once, and then goes on", trap=True)
    async def resume(self) -> None:
        async with live(self.app) as reader:
            await publish(self.app, "seen")
            last = (await reader.of_type("message")).id
        for text in ("a", "b", "c"):
            await publish(self.app, text)
        async with connect(self.app, last) as reader:
            found = [(await reader.next()).text for _ in range(3)]
            await publish(self.app, "d")
            found.append((await reader.next()).text)
        assert found == ["a", "b", "c", "d"], f"after a reconnect it gets {found}"

    @check("Reconnecting under load neither loses nor repeats an event", trap=True)
    async def under_load(self) -> None:
        numbers = itertools.count()
        senders = [self._send(numbers) for _ in range(3)]
        async with live(self.app) as steady, live(self.app) as first:
            last = await publish(self.app, "start")
            for reader in (steady, first):
                assert (await reader.of_type("message")).id == last
            async with during(asyncio.gather(*senders)):
                expected = [(await steady.next()).id for _ in range(120)]
            found: list[str] = []
            while len(found) < 120:
                async with connect(self.app, found[-1] if found else last) as reader:
                    part = [(await reader.next()).id for _ in range(24)]
                    found += part
        assert found == expected, "the events differ from those of a steady reader"

    async def _send(self, numbers: "itertools.count[int]") -> None:
        while True:
            await publish(self.app, f"load {next(numbers)}")

    @check("Who was away for too long is told to start again", trap=True)
    async def away(self) -> None:
        async with self.app.client() as client:
            old = await publish(self.app, "old", client)
            for _ in range(RING // 20 + 3):
                many = (publish(self.app, "new", client) for _ in range(20))
                await asyncio.gather(*many)
        await self._resets(self.app, old)

    @check("Who knows a server before its restart is told to start again", trap=True)
    async def restart(self) -> None:
        before = await self.start()
        old = [await publish(before, "old") for _ in range(3)][-1]
        before.kill()
        after = await self.start()
        for _ in range(6):
            await publish(after, "new")
        await self._resets(after, old)

    @check("A last id that makes no sense is told to start again")
    async def nonsense(self) -> None:
        for last in ("nonsense", "-5", "99999999999999999999999", "0-0"):
            await self._resets(self.app, last)

    async def _resets(self, app: App, last: str) -> None:
        async with connect(app, last) as reader:
            first = await reader.next()
            assert first.type == "reset", f"after {last!r} it gets {first}"
            await publish(app, "live")
            event = await reader.of_type("message")
            assert event.text == "live", f"after the reset it gets {event}"

    @check("A reader that does not read delays nobody")
    async def stalled(self) -> None:
        port = self.app.port
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await writer.drain()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        try:
            async with live(self.app) as reader, self.app.client() as client:
                for number in range(400):
                    await publish(self.app, f"{number:0500}", client)
                    found = (await reader.of_type("message")).text
                    assert found == f"{number:0500}", f"after {number} events: {found}"
        finally:
            writer.transport.abort()


class Reader:
    """An open stream."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.aiter_lines()

    async def next(self) -> Event:
        """The next event; comments and blocks without data do not count."""
        fields: dict[str, str] = {}
        try:
            async with asyncio.timeout(6):
                async for line in self._lines:
                    name, _, value = line.partition(":")
                    value = value.removeprefix(" ")
                    if name == "data" and "data" in fields:
                        value = f"{fields['data']}\n{value}"
                    if line and name:
                        fields[name] = value
                    elif "data" in fields:
                        kind = fields.get("event", "message")
                        return Event(fields.get("id", ""), kind, fields["data"])
        except TimeoutError:
            raise AssertionError("an expected event does not arrive") from None
        raise AssertionError("the stream has ended")

    async def of_type(self, kind: str) -> Event:
        """The next event of this type that is not a sign of life of the test."""
        while True:
            event = await self.next()
            if event.type == kind and event.text != "hello?":
                return event


@contextlib.asynccontextmanager
async def connect(app: App, last: str | None = None) -> AsyncIterator[Reader]:
    """Open the stream as EventSource does."""
    headers = {"accept": "text/event-stream"}
    if last is not None:
        headers["last-event-id"] = last
    async with app.client(timeout=20) as client:
        async with client.stream("GET", "/events", headers=headers) as response:
            assert response.status_code == 200, f"the stream is {response.status_code}"
            kind = response.headers.get("content-type", "")
            assert kind.startswith("text/event-stream"), f"the stream is {kind}"
            yield Reader(response)


@contextlib.asynccontextmanager
async def live(app: App) -> AsyncIterator[Reader]:
    """A stream that has been seen to be live."""
    async with connect(app) as reader:

        async def call() -> None:
            while True:
                await publish(app, "hello?")
                await asyncio.sleep(0.1)

        async with during(call()):
            await reader.next()
        yield reader


async def publish(app: App, text: str, client: httpx2.AsyncClient | None = None) -> str:
    """Publish an event; its id."""
    if client is None:
        async with app.client() as one:
            return await publish(app, text, one)
    answer = await client.post("/events", json={"text": text})
    assert answer.status_code == 201, f"publishing is answered with {answer}"
    return str(answer.json()["id"])
