"""routes/def_or_async: what blocks takes a thread, not the event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from recipes.routes.def_or_async import MAX_WAITING
from tests.conftest import Serve
from tests.harness.server import Server

SHARED = "tests.behavior.routes.shared_threads"
THREADS = 40
Calls = list[asyncio.Task[httpx2.Response]]


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with as many connections as it needs."""
    limits = httpx2.Limits(max_connections=None)
    async with server.client(limits=limits, timeout=30) as client:
        yield client


async def threads(client: httpx2.AsyncClient, busy: int, waiting: int = 0) -> None:
    """Wait until this many are busy and waiting."""
    async with asyncio.timeout(20):
        while True:
            response = await client.get("/threads")
            if response.raise_for_status().json() == {"busy": busy, "waiting": waiting}:
                return


def get(client: httpx2.AsyncClient, path: str, times: int = 1) -> Calls:
    return [asyncio.create_task(client.get(path)) for _ in range(times)]


async def present(client: httpx2.AsyncClient, times: int) -> None:
    for number in range(times):
        assert (await client.post(f"/cards/{number}")).status_code == 204


@pytest.mark.defect("D1")
async def test_a_blocking_call_in_def_holds_up_nobody_but_in_async_def_everybody(
    recipe: Server, naive: Server
) -> None:
    async with connected(recipe) as client:
        (call,) = get(client, "/card")
        await threads(client, busy=1)
        assert (await client.get("/ping")).json() == "pong"  # no card has come yet
        await client.post("/cards/7")
        assert (await call).json() == 7

    async with connected(naive) as client:
        (call,) = get(client, "/card")
        await asyncio.to_thread(naive.wait_for_log, "Present a card.")
        await client.post("/cards/7")  # cannot get in before the reader gives up
        assert (await call).status_code == 504


@pytest.mark.defect("D1")
async def test_the_41st_blocking_call_waits_and_nothing_else_does(
    recipe: Server,
) -> None:
    async with connected(recipe) as client:
        calls = get(client, "/card", THREADS + 1)
        await threads(client, busy=THREADS, waiting=1)
        assert (await client.get("/ping")).json() == "pong"
        await present(client, THREADS + 1)
        answers = await asyncio.gather(*calls)
        assert {answer.json() for answer in answers} == set(range(THREADS + 1))
        await threads(client, busy=0)


async def test_an_answer_of_a_def_route_waits_for_a_second_thread(
    recipe: Server,
) -> None:
    async with connected(recipe) as client:
        calls = get(client, "/card", THREADS + 1)
        await threads(client, busy=THREADS, waiting=1)
        await present(client, 1)  # one call has its card, but no thread to answer in
        for _ in range(20):
            await client.get("/ping")
        await threads(client, busy=THREADS, waiting=1)
        assert not any(call.done() for call in calls)
        await present(client, THREADS)
        await asyncio.gather(*calls)

        calls = get(client, "/greeting", THREADS + 1)
        await threads(client, busy=THREADS, waiting=1)
        await present(client, 1)
        await threads(client, busy=THREADS, waiting=0)
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert [call.result().json() for call in done] == ["Hello, 0"]
        await present(client, THREADS)
        await asyncio.gather(*calls)


async def test_one_blocking_call_among_awaits_takes_a_thread(recipe: Server) -> None:
    async with connected(recipe) as client:
        (call,) = get(client, "/greeting")
        await threads(client, busy=1)
        await client.post("/cards/7")
        assert (await call).json() == "Hello, 7"


async def test_all_that_uses_threads_shares_them(serve: Serve) -> None:
    server = serve(SHARED)
    async with connected(server) as client:
        calls = get(client, "/card", THREADS)
        await threads(client, busy=THREADS)
        large, small = ({"file": bytes(size)} for size in (2 << 20, 1))
        assert (await client.post("/upload", files=small)).json() == 1
        assert (await client.get("/async-def-dependency")).is_success
        others = [*get(client, "/file"), *get(client, "/def-dependency")]
        others.append(asyncio.create_task(client.post("/upload", files=large)))
        await threads(client, busy=THREADS, waiting=3)
        await present(client, THREADS)
        for answer in await asyncio.gather(*calls, *others):
            assert answer.is_success


async def test_the_number_of_threads_is_set_at_start(serve: Serve) -> None:
    server = serve("recipes.routes.def_or_async", env={"THREADS": "2"})
    async with connected(server) as client:
        calls = get(client, "/card", 3)
        await threads(client, busy=2, waiting=1)
        await present(client, 3)
        await asyncio.gather(*calls)
    with pytest.raises(RuntimeError, match="ValueError"):
        serve("recipes.routes.def_or_async", env={"THREADS": "many"}, strict=False)


async def test_ten_times_the_load_is_refused_and_not_queued(serve: Serve) -> None:
    server = serve("recipes.routes.def_or_async", env={"THREADS": "2"})
    async with connected(server) as client:
        calls = get(client, "/card", 2 + MAX_WAITING)
        await threads(client, busy=2, waiting=MAX_WAITING)
        for path in ("/card", "/greeting"):
            refused = await client.get(path)
            assert refused.status_code == 503
            assert refused.headers["Retry-After"]
        await present(client, 2 + MAX_WAITING)
        assert all(answer.is_success for answer in await asyncio.gather(*calls))


async def test_a_client_that_leaves_stops_no_thread(recipe: Server) -> None:
    async with connected(recipe) as client:
        async with connected(recipe) as other:
            (call,) = get(other, "/card")
            await threads(client, busy=1)
            call.cancel()
        assert (await client.get("/ping")).is_success
        await threads(client, busy=1)
        await client.post("/cards/7")
        await threads(client, busy=0)


async def test_a_timeout_around_a_thread_gives_its_place_away(serve: Serve) -> None:
    server = serve(SHARED)
    async with connected(server) as client:
        assert (await client.get("/timeout")).json() == {"busy": 0, "waiting": 0}
        await client.post("/cards/7")  # to the thread that nobody waits for
        (call,) = get(client, "/card")
        await threads(client, busy=1)
        await client.post("/cards/8")
        assert (await call).json() == 8


async def test_a_blocking_call_ends_by_its_own_timeout(serve: Serve) -> None:
    server = serve("tests.behavior.routes.impatient_threads")
    async with connected(server) as client:
        for path in ("/card", "/greeting"):
            assert (await client.get(path)).status_code == 504
        await threads(client, busy=0)


async def test_what_a_def_dependency_sets_is_not_set_in_the_route(serve: Serve) -> None:
    server = serve(SHARED)
    async with connected(server) as client:
        assert (await client.get("/async-def-dependency")).json() == "somebody"
        assert (await client.get("/def-dependency")).json() == "nobody"


async def test_a_def_route_reaches_the_loop_through_anyio(serve: Serve) -> None:
    server = serve(SHARED)
    async with connected(server) as client:
        (call,) = get(client, "/wait")
        await client.get("/ring")
        assert (await call).json() == "rung"


async def test_bad_cards_and_too_many_are_refused(recipe: Server) -> None:
    async with connected(recipe) as client:
        for card in ("x", "9" * 5000, "1.5", "%00"):
            assert (await client.post(f"/cards/{card}")).status_code == 422
        for _ in range(100):
            assert (await client.post("/cards/7")).status_code == 204
        assert (await client.post("/cards/7")).status_code == 503


async def test_a_stop_does_not_wait_for_a_thread(serve: Serve) -> None:
    target = "recipes.routes.def_or_async"
    server = serve(target, strict=False, timeout_graceful_shutdown=1)
    async with connected(server) as client:
        calls = get(client, "/card", THREADS + 1)
        await threads(client, busy=THREADS, waiting=1)
        server.terminate()
        assert await asyncio.to_thread(server.wait) == -15
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(outcome, httpx2.Response):
                assert outcome.status_code == 500  # and not 504: the thread went on
            else:
                assert isinstance(outcome, httpx2.TransportError)
