"""sse/feed: a reader that comes back misses nothing and repeats nothing."""

import asyncio
import socket
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from recipes.sse import feed
from tests.behavior.sse import naive_feed_heartbeat, small_feed
from tests.conftest import Serve
from tests.harness.server import Server

Events = AsyncIterator[httpx2.ServerSentEvent]


async def publish(client: httpx2.AsyncClient, *messages: str) -> str:
    """Publish in order; the id of the last one."""
    for message in messages:
        response = await client.post("/events", json={"message": message})
        assert response.status_code == 201
    return str(response.json())


@asynccontextmanager
async def reading(
    client: httpx2.AsyncClient, after: str = "", last_event_id: str = ""
) -> AsyncIterator[Events]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    params = {"after": after} if after else {}
    async with client.sse("/feed", headers=headers, params=params) as source:
        yield (event async for event in source if event.data)  # as browsers do


async def heard_after_a_tunnel(server: Server) -> object:
    """What a reader of "one" hears first when it is back; "two" came meanwhile."""
    async with server.client() as client:
        async with reading(client) as events:
            await publish(client, "one")
            event = await anext(events)
        await publish(client, "two")
        async with reading(client, last_event_id=event.id or "") as events:
            await publish(client, "three")
            return (await anext(events)).json()


@pytest.mark.defect("D53")
async def test_a_reader_that_comes_back_gets_what_it_missed(
    recipe: Server, naive: Server
) -> None:
    assert await heard_after_a_tunnel(recipe) == "two"
    assert await heard_after_a_tunnel(naive) == "three"


async def test_a_reader_that_drops_before_its_first_event_comes_back(
    recipe: Server, naive: Server
) -> None:
    async def heard(server: Server) -> object:
        async with server.client() as client:
            async with client.stream("GET", "/feed") as response:
                await publish(client, "seen by who stays")
                line = await anext(response.aiter_lines())
            last_event_id = line.removeprefix("id: ") if "id: " in line else ""
            async with reading(client, last_event_id=last_event_id) as events:
                await publish(client, "later")
                return (await anext(events)).json()

    assert await heard(recipe) == "seen by who stays"
    assert await heard(naive) == "later"


async def test_no_event_is_lost_between_the_headers_and_the_first_read(
    recipe: Server,
) -> None:
    async with recipe.client() as client:
        for number in range(50):
            async with reading(client) as events:
                await publish(client, str(number))
                assert (await anext(events)).json() == str(number)


async def first_line_when_idle(server: Server) -> str:
    async with server.client() as client:
        async with client.stream("GET", "/feed") as response:
            async for line in response.aiter_lines():
                if line and not line.startswith("id: "):
                    return line
    return ""


@pytest.mark.defect("D58")
async def test_an_idle_stream_is_kept_open_by_a_comment_that_no_client_sees(
    serve: Serve,
) -> None:
    recipe = serve("tests.behavior.sse.pinging_feed")
    naive = serve("tests.behavior.sse.naive_feed_heartbeat", strict=False)
    assert await first_line_when_idle(recipe) == ": ping"
    assert await first_line_when_idle(naive) == "event: heartbeat"


async def cancellation_arrives(events: AsyncIterable[object]) -> bool:
    """Whether a task that reads `events` is cancelled, not just finished."""

    async def read() -> None:
        async for _ in events:
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0)  # it has started and waits for an event
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


@pytest.mark.defect("D57")
async def test_a_cancelled_reader_is_cancelled() -> None:
    assert await cancellation_arrives(feed.Feed().after(0))
    assert not await cancellation_arrives(naive_feed_heartbeat.heartbeats())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("unknown", ["0badcafe-7", "7", "-", "9" * 5000, "' OR 1=1"])
async def test_an_id_that_is_not_ours_resets(recipe: Server, unknown: str) -> None:
    async with recipe.client() as client:
        async with reading(client, last_event_id=unknown) as events:
            event = await anext(events)
            assert event.event == "reset"
            assert event.data  # without data an EventSource would not fire
            await publish(client, "live")
            assert (await anext(events)).json() == "live"


async def test_an_id_from_before_a_restart_resets(serve: Serve) -> None:
    before = serve("recipes.sse.feed")
    async with before.client() as client:
        old = await publish(client, "before")
    before.stop()
    after = serve("recipes.sse.feed")
    async with after.client() as client:
        assert await publish(client, "after") != old
        async with reading(client, after=old) as events:
            assert (await anext(events)).event == "reset"


async def test_away_longer_than_the_ring_resets(serve: Serve) -> None:
    async with serve("tests.behavior.sse.small_feed").client() as client:
        first = await publish(client, "0")
        await publish(client, *(str(n) for n in range(1, small_feed.HISTORY + 1)))
        async with reading(client, after=first) as events:
            assert (await anext(events)).json() == "1"  # all of it is still there
        await publish(client, "one too many")
        async with reading(client, after=first) as events:
            assert (await anext(events)).event == "reset"


async def test_readers_that_leave_while_events_are_sent_leave_no_traceback(
    recipe: Server, naive: Server
) -> None:
    """FastAPI 0.165 raises in the task that waits until the last event is taken."""

    async def leave(server: Server) -> str:
        async with server.client() as client:
            readers = [socket.socket() for _ in range(5)]
            for reader in readers:
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                reader.connect(("127.0.0.1", server.port))
                reader.sendall(b"GET /feed HTTP/1.1\r\nHost: x\r\n\r\n")
                assert reader.recv(12) == b"HTTP/1.1 200"
            big = "\N{GRINNING FACE}" * feed.MAX_MESSAGE  # 12 bytes each, on the wire
            for _ in range(200):
                response = await client.post("/events", json={"message": big})
                assert response.is_success
            for reader in readers:
                reader.close()  # with unread bytes: RST
        await asyncio.to_thread(server.stop)
        return server.log

    assert "BrokenResourceError" not in await leave(recipe)
    assert "BrokenResourceError" in await leave(naive)


async def test_a_reader_that_stalls_harms_nobody_and_is_reset(serve: Serve) -> None:
    """More than the sockets' buffers hold is published while it does not read."""
    server = serve("tests.behavior.sse.small_feed")
    big = "\N{GRINNING FACE}" * (feed.MAX_MESSAGE - 10)  # four bytes each
    async with server.client() as client:
        with socket.create_connection(("127.0.0.1", server.port)) as stalled:
            stalled.sendall(b"GET /feed HTTP/1.1\r\nHost: x\r\n\r\n")
            assert stalled.recv(1024).startswith(b"HTTP/1.1 200")
            async with reading(client) as events:
                for number in range(800):  # 12 MB
                    await publish(client, f"{number} {big}")
                    heard = (await anext(events)).json()
                    assert str(heard).startswith(f"{number} ")
            stalled.settimeout(20)
            assert await asyncio.to_thread(finds, stalled, b"event: reset")


def finds(connection: socket.socket, needle: bytes) -> bool:
    tail = b""
    while chunk := connection.recv(1 << 16):
        if needle in tail + chunk:
            return True
        tail = chunk[-len(needle) :]
    return False


async def test_bad_messages_are_refused(recipe: Server) -> None:
    too_long = {"message": "x" * (feed.MAX_MESSAGE + 1)}
    too_large = {"message": "x" * 70_000}
    async with recipe.client() as client:
        assert (await client.post("/events", json={})).status_code == 422
        assert (await client.post("/events", json=too_long)).status_code == 422
        assert (await client.post("/events", json=too_large)).status_code == 413


async def test_an_open_stream_holds_up_a_stop_unless_it_is_bounded(
    serve: Serve,
) -> None:
    unbounded = serve("recipes.sse.feed", strict=False, timeout_graceful_shutdown=None)
    bounded = serve("recipes.sse.feed", strict=False, timeout_graceful_shutdown=1)
    async with unbounded.client() as one, bounded.client() as two:
        async with reading(one), reading(two):
            unbounded.terminate()
            bounded.terminate()
            assert await asyncio.to_thread(bounded.wait) == -15
            unbounded.wait_for_log("Waiting for connections to close")
            assert unbounded.is_running
