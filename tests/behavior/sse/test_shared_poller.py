"""sse/shared_poller: one poll for all, and no error of the backend ends a stream."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2
import pytest

from tests.conftest import Serve
from tests.harness.server import Server

POLLED = "tests.behavior.sse.polled_shared_poller"
RECIPE = {"TARGET": "recipes.sse.shared_poller"}
NAIVE = {"TARGET": "tests.behavior.sse.naive_shared_poller"}
SOON: dict[str, Any] = {"timeout_graceful_shutdown": 1}
READERS = 10
Events = AsyncIterator[httpx2.ServerSentEvent]


@pytest.fixture(scope="module")
def servers(serve_for_file: Serve) -> dict[str, Server]:
    return {
        "recipe": serve_for_file(POLLED, env=RECIPE, **SOON),
        "naive": serve_for_file(POLLED, env=NAIVE, strict=False, **SOON),
    }


@pytest.fixture
async def recipe(servers: dict[str, Server]) -> Server:
    """Whose backend is up again, and has been polled since."""
    async with servers["recipe"].client() as client:
        await backend(client)
        await polled(client, 2)
    return servers["recipe"]


@pytest.fixture
async def naive(servers: dict[str, Server]) -> Server:
    async with servers["naive"].client() as client:
        await backend(client)
    return servers["naive"]


@asynccontextmanager
async def reading(client: httpx2.AsyncClient) -> AsyncIterator[Events]:
    async with client.sse("/prices") as source:
        yield aiter(source)


async def backend(client: httpx2.AsyncClient, **state: object) -> None:
    response = await client.put("/backend", params=state)  # type: ignore[arg-type]
    assert response.is_success


async def polls(client: httpx2.AsyncClient) -> int:
    return int((await client.get("/polls")).json())


async def polled(client: httpx2.AsyncClient, times: int) -> None:
    """Wait until the backend has been polled so often again."""
    wanted = await polls(client) + times
    while await polls(client) < wanted:
        await asyncio.sleep(0.01)


@pytest.mark.defect("D54", "D55")
@pytest.mark.parametrize("how", ["down", "cancelled"])
async def test_an_error_of_the_backend_does_not_end_a_stream(
    recipe: Server, naive: Server, how: str
) -> None:
    async def heard(server: Server) -> list[str]:
        """What a reader hears until the backend is up again and has changed."""
        found = []
        async with server.client() as client, reading(client) as events:
            found.append((await anext(events)).data)
            await backend(client, how=how)
            try:
                async for event in events:
                    found.append(event.event if event.data == "{}" else event.data)
                    if found[-1] == "stale":
                        await backend(client, tea=451)
                    if "451" in found[-1]:
                        return found
            except httpx2.RemoteProtocolError:
                pass
            return [*{*found}, "the end"]

    assert await heard(recipe) == ['{"tea": 450}', "stale", '{"tea": 451}']
    assert await heard(naive) == ['{"tea": 450}', "the end"]


@pytest.mark.defect("D56")
async def test_one_poll_for_all_readers_and_only_changes_are_sent(
    recipe: Server, naive: Server
) -> None:
    async def after_a_change(server: Server) -> tuple[bool, set[int]]:
        """Were there polls for each reader, and how many events until the change?"""
        counts: set[int] = set()
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(server.client())
            before = await polls(client)
            readers = [
                await stack.enter_async_context(reading(client)) for _ in range(READERS)
            ]
            for events in readers:
                await anext(events)
            polled_by_each = await polls(client) - before >= READERS
            await polled(client, 3 * READERS)
            await backend(client, tea=451)
            for events in readers:
                count = 1
                async for event in events:
                    count += 1
                    if "451" in event.data:
                        break
                counts.add(count)
        return polled_by_each, counts

    _, ours = await after_a_change(recipe)
    assert ours == {2}
    by_each, theirs = await after_a_change(naive)
    assert by_each
    assert min(theirs) > 2


@pytest.mark.defect("D56")
async def test_polls_do_not_grow_with_readers(recipe: Server, naive: Server) -> None:
    async def overlapping(server: Server) -> bool:
        """Did all readers poll before the first one did so again?"""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(server.client())
            await backend(client, how="hangs")
            start = await polls(client)
            for _ in range(READERS):
                stream = client.stream("GET", "/prices")
                await stack.enter_async_context(stream)
            for _ in range(20):  # while it hangs, nobody polls again
                found = await polls(client) - start
                if found == READERS:
                    return True
                await asyncio.sleep(0.02)
        return False

    assert not await overlapping(recipe)
    assert await overlapping(naive)


async def test_a_reader_that_comes_back_hears_the_newest_state(recipe: Server) -> None:
    async with recipe.client() as client:
        for tea in 450, 451:  # the same again, and one that has changed meanwhile
            await backend(client, tea=tea)
            await polled(client, 2)
            for _ in range(2):
                async with reading(client) as events:
                    assert (await anext(events)).data == f'{{"tea": {tea}}}'
        await backend(client, how="down")
        await polled(client, 2)
        async with reading(client) as events:
            assert (await anext(events)).event == "stale"


async def test_stale_is_heard_once_and_is_over_with_the_same_state(
    recipe: Server,
) -> None:
    async with recipe.client() as client, reading(client) as events:
        assert (await anext(events)).data == '{"tea": 450}'
        await backend(client, how="down")
        stale = await anext(events)
        assert (stale.event, stale.data) == ("stale", "{}")
        await polled(client, 3)  # not said again
        await backend(client, how="odd")  # NaN is no JSON
        await polled(client, 3)
        await backend(client, how="up")
        assert (await anext(events)).data == '{"tea": 450}'
    assert "poll: ConnectionError('the backend is down')" in recipe.log
    assert "poll: ValueError" in recipe.log


async def test_a_backend_that_hangs_is_stale_and_is_asked_again(serve: Serve) -> None:
    env = RECIPE | {"POLL_TIMEOUT": "0.1", "HOW": "hangs"}
    server = serve(POLLED, env=env, **SOON)
    async with server.client() as client, reading(client) as events:
        assert (await anext(events)).event == "stale"  # from the start
        await backend(client, how="up")
        assert (await anext(events)).data == '{"tea": 450}'


async def test_a_reader_that_stalls_skips_to_the_newest_and_harms_nobody(
    recipe: Server,
) -> None:
    """The states sent while it does not read are more than the sockets hold."""
    size = 500_000
    async with recipe.client() as client:
        await backend(client, big=size)
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            stalled.connect(("127.0.0.1", recipe.port))
            stalled.sendall(b"GET /prices HTTP/1.1\r\nHost: x\r\n\r\n")
            assert stalled.recv(12) == b"HTTP/1.1 200"
            async with reading(client) as events:
                for _ in range(30):
                    await anext(events)
            await backend(client, tea=451)
            stalled.settimeout(20)
            received = await asyncio.to_thread(until, stalled, b'{"tea": 451}')
    states = received.count(b'"big"')
    assert 1 <= states < 20


def until(connection: socket.socket, needle: bytes) -> bytes:
    received = b""
    while needle not in received[-(1 << 18) :]:
        received += connection.recv(1 << 17)
    return received


async def test_readers_that_leave_while_events_are_sent_leave_no_traceback(
    serve: Serve,
) -> None:
    recipe = serve(POLLED, env=RECIPE, **SOON)
    async with recipe.client() as client:
        await backend(client, big=1_000_000)
        readers = [socket.socket() for _ in range(5)]
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", recipe.port))
            reader.sendall(b"GET /prices HTTP/1.1\r\nHost: x\r\n\r\n")
            assert reader.recv(12) == b"HTTP/1.1 200"
        await polled(client, 10)
        for reader in readers:
            reader.close()  # with unread bytes: RST
        await polled(client, 2)
    await asyncio.to_thread(recipe.stop)
    assert "BrokenResourceError" not in recipe.log


async def test_it_stops_also_while_the_backend_hangs(serve: Serve) -> None:
    recipe = serve(POLLED, env=RECIPE, **SOON)
    async with recipe.client() as client, reading(client) as events:
        await anext(events)
        await backend(client, how="hangs")
        recipe.terminate()
        assert await asyncio.to_thread(recipe.wait) == -15
