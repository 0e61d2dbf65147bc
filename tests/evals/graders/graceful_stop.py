"""A deploy that loses no payment and does not wait for open streams."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path

import httpx2

from tests.evals.harness import App, Asked, Grader, Reply, Upstream, check, until


class Task(Grader):
    """See `graceful_stop` in `evals.json`."""

    async def setup(self) -> None:
        """A bank whose answers can be held back."""
        self.release = asyncio.Event()
        self.release.set()
        self.bank = await self.stack.enter_async_context(Upstream(self._answer))
        self.env["BANK_URL"] = self.bank.url
        self.env["AUDIT_FILE"] = str(self.folder / "audit.txt")

    async def _answer(self, asked: Asked) -> Reply:
        assert asked.path == "/charge"
        await self.release.wait()
        return Reply(b'{"ok": true}')

    async def fresh(self) -> tuple[App, Path]:
        """A process of its own, with its own audit file."""
        audit = self.folder / f"audit-{id(object())}.txt"
        audit.unlink(missing_ok=True)
        return await self.start(AUDIT_FILE=str(audit)), audit

    @check("Payments are made and written down, and ticks are counted")
    async def happy(self) -> None:
        async with self.app.client() as client:
            paid = await client.post("/payments", json={"id": "p1"})
            assert paid.status_code == 201, f"201 expected, got {paid.status_code}"
            assert paid.json() == {"id": "p1", "status": "paid"}, f"got {paid.text}"
        audit = Path(self.env["AUDIT_FILE"]).read_text().split("\n")
        assert audit == ["paid p1", ""], f"the audit file holds {audit}"
        stream = Stream(self.app)
        async with stream:
            await until(lambda: len(stream.ticks()) >= 3, "there are no three ticks")
            assert stream.ticks()[:3] == [1, 2, 3], f"got {stream.ticks()}"

    @check("With open streams it ends within 10 seconds of SIGTERM", trap=True)
    async def ends(self) -> None:
        app, _ = await self.fresh()
        async with contextlib.AsyncExitStack() as stack:
            streams = [Stream(app) for _ in range(20)]
            for stream in streams:
                await stack.enter_async_context(stream)
            for stream in streams:
                await until(stream.ticks, "there is no tick")
            app.terminate()
            assert await app.ended(10), "it still runs"

    @check("Each open stream says bye and ends cleanly", trap=True)
    async def bye(self) -> None:
        app, _ = await self.fresh()
        async with Stream(app) as one, Stream(app) as two:
            await until(lambda: one.ticks() and two.ticks(), "there is no tick")
            app.terminate()
            for stream in (one, two):
                await until(lambda: stream.ended, "the stream does not end", 9)  # noqa: B023
                last = stream.events[-1][0]
                assert last == "bye", f"the last event is {last}"
                assert stream.trouble is None, f"the stream broke: {stream.trouble}"

    @check("A payment under way at SIGTERM is answered with 201")
    async def payment(self) -> None:
        await self._payment(signal.SIGTERM)

    @check("Ctrl-C stops it just as well")
    async def interrupt(self) -> None:
        await self._payment(signal.SIGINT)

    async def _payment(self, number: signal.Signals) -> None:
        app, audit = await self.fresh()
        self.release.clear()
        self.bank.reset()
        async with Stream(app) as stream, app.client() as client:
            await until(stream.ticks, "there is no tick")
            paying = asyncio.create_task(client.post("/payments", json={"id": "p2"}))
            await until(lambda: self.bank.calls, "the bank is not asked")
            app.process.send_signal(number)
            await asyncio.sleep(0.7)
            self.release.set()
            try:
                status = (await paying).status_code
            except httpx2.TransportError:
                raise AssertionError("the payment gets no answer") from None
            assert status == 201, f"the payment is answered with {status}"
            assert await app.ended(9), "it still runs"
        lines = audit.read_text().split()
        assert lines == ["paid", "p2", "stopped"], f"the audit file holds {lines}"

    @check("A bank that hangs is a 504 after 5 seconds, and does not hold up a stop")
    async def hanging(self) -> None:
        app, audit = await self.fresh()
        self.release.clear()
        self.bank.reset()
        try:
            async with app.client() as client:
                body = {"id": "p3"}
                paying = asyncio.create_task(client.post("/payments", json=body))
                await until(lambda: self.bank.calls, "the bank is not asked")
                app.terminate()
                status = (await paying).status_code
                assert status == 504, f"504 expected, got {status}"
                assert await app.ended(5), "it still runs"
        finally:
            self.release.set()
        lines = audit.read_text().split()
        assert lines == ["stopped"], f"the audit file holds {lines}"


class Stream:
    """A reader of the ticks, who takes down what it hears."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.events: list[tuple[str, str]] = []
        self.ended = False
        self.trouble: str | None = None

    async def __aenter__(self) -> "Stream":  # noqa: PYI034
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def ticks(self) -> list[int]:
        """The numbers of the ticks so far."""
        return [json.loads(data)["n"] for kind, data in self.events if kind == "tick"]

    async def _listen(self) -> None:
        kind = ""
        try:
            async with self.app.client(timeout=20) as client:
                async with client.stream("GET", "/ticks") as response:
                    async for line in response.aiter_lines():
                        name, _, value = line.partition(":")
                        if name == "event":
                            kind = value.strip()
                        elif name == "data":
                            self.events.append((kind, value.strip()))
        except httpx2.HTTPError as error:
            self.trouble = type(error).__name__
        self.ended = True
