"""What the guide on older knowledge says of servers, shown by the code on its pages."""

import asyncio
import inspect
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import Serve
from tests.facts.sections import BAR, PAGES, code, headings, loaded, section, told
from tests.harness.server import Server

MODULE = "tests.facts.served_section"


def printed(server: Server) -> list[str]:
    """The lines that the section's code has printed."""
    lines = server.log.splitlines()
    return [line.removeprefix(BAR) for line in lines if line.startswith(BAR)]


async def until(server: Server, line: str) -> None:
    await asyncio.to_thread(server.wait_for_log, BAR + line)


async def test_cleanup_after_a_disconnect(serve: Serve) -> None:
    heading = "After a disconnect only dependencies may await"
    server = serve(MODULE, env={"SECTION": heading})
    async with server.client() as client:
        async with client.stream("GET", "/feed") as response:
            await anext(response.aiter_lines())
    await until(server, "dependency has closed")
    assert printed(server) == told(heading)


async def test_a_sync_generator_is_not_closed(serve: Serve) -> None:
    heading = "A sync generator is not closed"
    server = serve(MODULE, env={"SECTION": heading}, strict=False)
    async with server.client() as client:
        async with client.stream("GET", "/rows") as response:
            await anext(response.aiter_lines())
        await until(server, "the client has left")
        await client.post("/collect")
    await until(server, "closed")
    assert printed(server) == told(heading)


async def test_a_handler_goes_on_without_its_client(serve: Serve) -> None:
    heading = "A handler runs to its end"
    server = serve(MODULE, env={"SECTION": heading})
    async with server.client() as client:
        request = asyncio.create_task(client.post("/report", json={"year": 2026}))
        await until(server, "working on")
        request.cancel()
        await asyncio.wait([request])
    await until(server, "background task")
    assert printed(server) == told(heading)


async def test_an_open_stream_and_three_signals(serve: Serve) -> None:
    heading = "uvicorn waits forever for an open stream"
    server = serve(
        MODULE, env={"SECTION": heading}, strict=False, timeout_graceful_shutdown=None
    )
    seen: list[str] = []
    async with server.client() as client, connect(f"{server.ws_url}/ws"):
        async with client.stream("GET", "/ticks") as response:
            lines = response.aiter_lines()
            await anext(lines)
            server.terminate()
            for text in ("Waiting for connections to close", "WebSocket closed"):
                log = await asyncio.to_thread(server.wait_for_log, text)
                [line] = [line for line in log.splitlines() if text in line]
                seen.append(f"SIGTERM: {line.removeprefix(BAR)}")
            seen.append(f"SIGTERM: {await next_events(lines)}")
            server.terminate()
            seen.append(f"SIGTERM: {await next_events(lines)}")
            server.signal(signal.SIGINT)
            await asyncio.to_thread(server.wait)
            seen.append("SIGINT: the process has ended")
    assert seen == told(heading)


async def next_events(lines: AsyncIterator[str]) -> str:
    for _ in range(20):  # ten of them
        await anext(lines)
    return "the stream goes on"


async def test_a_grace_period_does_not_wait_for_cleanup(serve: Serve) -> None:
    heading = "--timeout-graceful-shutdown does not wait"
    server = serve(
        MODULE, env={"SECTION": heading}, strict=False, timeout_graceful_shutdown=1
    )
    async with server.client() as client:
        assert (await client.post("/mail")).is_success
        async with client.stream("GET", "/feed") as response:
            await anext(response.aiter_lines())
            server.terminate()
            assert await asyncio.to_thread(server.wait) == -signal.SIGTERM
    *cancelled, last = printed(server)
    assert [*sorted(cancelled), last] == told(heading)  # they are cancelled as a set


async def test_streams_that_are_told_to_end(serve: Serve) -> None:
    heading = "A signal handler of your own"
    server = serve(MODULE, env={"SECTION": heading}, timeout_graceful_shutdown=None)
    seen: list[str] = []
    async with server.client() as client:
        async with client.stream("GET", "/feed") as response:
            async for line in response.aiter_lines():
                if line:
                    seen.append(f"client: {line}")
                    server.terminate()
    await asyncio.to_thread(server.wait)
    assert seen + [f"server: {line}" for line in printed(server)] == told(heading)


async def test_websockets_that_end_badly(serve: Serve) -> None:
    heading = "A crash after accept"
    server = serve(MODULE, env={"SECTION": heading}, strict=False)
    seen: list[str] = []
    async with connect(f"{server.ws_url}/crash") as crashed:
        with pytest.raises(ConnectionClosed):
            await crashed.recv()
        seen.append(f"/crash: {crashed.close_code}")
    async with connect(f"{server.ws_url}/echo") as echo:
        await echo.send("x" * (16 * 1024 * 1024 + 1))
        with pytest.raises(ConnectionClosed):
            await echo.recv()
        seen.append(f"16 MiB and a byte: {echo.close_code}")
    async with connect(f"{server.ws_url}/echo"):
        pass
    error = "starlette.websockets.WebSocketDisconnect: (1000, '')"
    await asyncio.to_thread(server.wait_for_log, error)
    assert "Exception in ASGI application" in server.log
    assert [*seen, f"left: {error}"] == told(heading)


async def test_websockets_that_are_refused(serve: Serve) -> None:
    heading = "A WebSocketException before accept"
    server = serve(MODULE, env={"SECTION": heading})
    seen: list[str] = []
    for path in ("/rooms/1", "/rooms/one"):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.ws_url}{path}")
        seen.append(f"{path}: {refused.value.response.status_code}")
    assert seen == told(heading)


async def what_follows(server: Server, path: str) -> str:
    """The answer to a second request on the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert b"connection: close" not in head
    await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
    try:
        writer.write(b"GET /handled HTTP/1.1\r\nHost: x\r\n\r\n")
        following = (await reader.readline()).decode().strip()
    except ConnectionError:
        following = ""
    finally:
        writer.close()
    return following or "nothing: it is closed"


async def test_a_connection_after_an_error(serve: Serve) -> None:
    heading = "uvicorn closes the connection after"
    server = serve(MODULE, env={"SECTION": heading}, strict=False)
    paths = ("/handled", "/unhandled")
    seen = [f"{path}, then {await what_follows(server, path)}" for path in paths]
    assert seen == told(heading)


async def test_sse_starlette_ends_its_streams(serve: Serve) -> None:
    heading = "sse-starlette is for"
    server = serve(MODULE, env={"SECTION": heading}, timeout_graceful_shutdown=None)
    pinged = {"/cut": asyncio.Event(), "/polite": asyncio.Event()}
    async with server.client() as client:
        readers = [
            asyncio.create_task(read(client, path, event))
            for path, event in pinged.items()
        ]
        for event in pinged.values():
            await event.wait()
        server.terminate()
        seen = [line for reader in readers for line in await reader]
    await asyncio.to_thread(server.wait)
    assert seen == told(heading)


async def read(
    client: httpx2.AsyncClient, path: str, pinged: asyncio.Event
) -> list[str]:
    """Each line that a stream has sent, once, and how it ended."""
    seen: list[str] = []
    end = "complete"
    try:
        async with client.stream("GET", path) as response:
            async for line in response.aiter_lines():
                if line and line not in seen:
                    seen.append(line)
                if line.startswith(":"):
                    pinged.set()
    except httpx2.RemoteProtocolError:
        end = "cut off"
    return [f"{path}: {line}" for line in (*seen, end)]


async def test_what_a_transport_repeats(serve: Serve) -> None:
    heading = "A transport with retries"
    server = serve(MODULE, env={"SECTION": heading})
    status = await loaded(heading)["ask"](server.url)
    assert [*printed(server), str(status)] == told(heading)


async def shown(heading: str, url: str) -> list[str]:
    """The lines that `show(url)` of a section prints."""
    lines: list[str] = []
    names = loaded(heading, lambda *values: lines.append(" ".join(map(str, values))))
    if inspect.iscoroutinefunction(names["show"]):
        await names["show"](url)
    else:
        await asyncio.to_thread(names["show"], url)
    return lines


@pytest.mark.parametrize(
    "heading",
    ["A full Redis pool", "A blocking Redis command", "redis-py speaks RESP3"],
)
async def test_redis(redis_url: str, heading: str) -> None:
    assert await shown(heading, redis_url) == told(heading)


@pytest.mark.parametrize(
    "heading", ["Motor is over", "An AsyncMongoClient belongs to one event loop"]
)
async def test_mongodb(new_mongo_database: Callable[[], str], heading: str) -> None:
    assert await shown(heading, new_mongo_database()) == told(heading)


@pytest.mark.parametrize(
    "heading",
    [
        "expire_on_commit still breaks",
        "One AsyncSession in gather fails",
        "Many ORM objects are few INSERT",
        "An asyncpg connection does one thing",
    ],
)
def test_postgresql(new_database: Callable[[], str], heading: str) -> None:
    url = new_database()
    if "sqlalchemy" in section(heading):
        url = url.replace("postgresql://", "postgresql+asyncpg://")
    assert asyncio.run(shown(heading, url)) == told(heading)


def test_anyio_plugin(pytester: pytest.Pytester) -> None:
    heading = "AnyIO's pytest plugin"
    pytester.makepyfile(code(heading))
    done = pytester.runpytest("-o", "anyio_mode=auto", "-p", "no:cacheprovider")
    assert [f"{done.parseoutcomes()['passed']} passed"] == told(heading)


def test_the_guide_lists_every_section_and_nothing_is_told_untested() -> None:
    index = (PAGES[0].parent / "older_knowledge.md").read_text("utf-8")
    shown = Path(__file__).read_text("utf-8")
    tested = tuple(re.findall(r'"([^"\n]{8,})"', shown))
    for path in PAGES:
        for heading in headings(path):
            assert f"- [{heading}]({path.name}#" in index
            if "```text" in section(heading):
                assert heading.startswith(tested), heading
