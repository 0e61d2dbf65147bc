"""routes/def_or_async: what blocks takes a thread, not the event loop."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import pytest

from tests.conftest import Serve
from tests.harness.server import Server

FEW = "tests.behavior.routes.few_threads"
THREADS = 2  # of FEW
DEFAULT_THREADS = 40
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
            found = response.json() if response.is_success else None
            if found == {"busy": busy, "waiting": waiting}:
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
        for path, answer in {"/card": 0, "/greeting": "Hello, 0"}.items():
            (call,) = get(client, path)
            await threads(client, busy=1)
            assert (await client.get("/ping")).json() == "pong"  # no card has come yet
            await present(client, 1)
            assert (await call).json() == answer

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
        calls = get(client, "/card", DEFAULT_THREADS + 1)
        await threads(client, busy=DEFAULT_THREADS, waiting=1)
        assert (await client.get("/ping")).json() == "pong"
        await present(client, DEFAULT_THREADS + 1)
        answers = await asyncio.gather(*calls)
        assert {answer.json() for answer in answers} == set(range(DEFAULT_THREADS + 1))
        await threads(client, busy=0)


async def test_an_answer_of_a_def_route_waits_for_a_second_thread(serve: Serve) -> None:
    server = serve(FEW)
    async with connected(server) as client:
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


async def test_all_that_uses_threads_shares_them_but_to_thread(serve: Serve) -> None:
    server = serve(FEW)
    async with connected(server) as client:
        calls = get(client, "/card", THREADS)
        await threads(client, busy=THREADS)
        assert (await client.get("/to-thread")).json() == "done"
        large, small = ({"file": bytes(size)} for size in (2 << 20, 1))
        assert (await client.post("/upload", files=small)).json() == 1
        assert (await client.get("/async-def-dependency")).is_success
        others = [*get(client, "/file"), *get(client, "/def-dependency")]
        others.append(asyncio.create_task(client.post("/upload", files=large)))
        await threads(client, busy=THREADS, waiting=3)
        await present(client, THREADS)
        for answer in await asyncio.gather(*calls, *others):
            assert answer.is_success


def test_to_thread_has_as_many_threads_as_cpus_and_4_but_at_most_32() -> None:
    goes_on = threading.Event()

    async def wait_in_many() -> int:
        before = set(threading.enumerate())
        calls = [
            asyncio.create_task(asyncio.to_thread(goes_on.wait)) for _ in range(99)
        ]
        await asyncio.sleep(0)
        started = set(threading.enumerate()) - before
        goes_on.set()
        await asyncio.gather(*calls)
        return len(started)

    cpus = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    assert asyncio.run(wait_in_many()) == min(cpus + 4, 32)


async def test_only_uvicorn_limits_the_queue(serve: Serve) -> None:
    load = 10 * THREADS
    async with connected(serve(FEW)) as client:
        calls = get(client, "/card", load)
        await threads(client, busy=THREADS, waiting=load - THREADS)
        await present(client, load)
        assert all(answer.is_success for answer in await asyncio.gather(*calls))

    limit = THREADS + 3  # one more call, one connection to look, one that is refused
    server = serve(FEW, limit_concurrency=limit)
    async with connected(server) as client, server.client() as observer:
        await threads(observer, busy=0)
        calls = get(client, "/card", THREADS + 1)
        await threads(observer, busy=THREADS, waiting=1)
        for refused in await asyncio.gather(*get(client, "/card", load)):
            assert refused.status_code == 503
        await threads(observer, busy=THREADS, waiting=1)
        await present(observer, THREADS + 1)
        assert all(answer.is_success for answer in await asyncio.gather(*calls))

    idle = [
        await asyncio.open_connection("127.0.0.1", server.port) for _ in range(limit)
    ]
    async with connected(server) as client:
        assert (await client.get("/ping")).status_code == 503
    for _, writer in idle:
        writer.close()


async def test_no_thread_stops_before_its_own_timeout(serve: Serve) -> None:
    server = serve(FEW)
    async with connected(server) as client:
        async with connected(server) as other:
            (call,) = get(other, "/card")
            await threads(client, busy=1)
            call.cancel()
        assert (await client.get("/ping")).is_success
        await threads(client, busy=1)  # the client has disconnected
        await present(client, 1)
        await threads(client, busy=0)

        assert (await client.get("/timeout")).json() == {"busy": 0, "waiting": 0}
        await client.post("/cards/7")  # to the thread that nobody waits for
        (call,) = get(client, "/card")
        await threads(client, busy=1)
        await client.post("/cards/8")
        assert (await call).json() == 8

    server = serve(FEW, env={"READ_SECONDS": "0.01"})
    async with server.client(timeout=15) as client:  # and not the 20 s of the recipe
        for path in ("/card", "/greeting"):
            assert (await client.get(path)).status_code == 504
        await threads(client, busy=0)


async def test_what_a_def_dependency_and_a_def_route_do_to_the_loop(
    serve: Serve,
) -> None:
    server = serve(FEW)
    async with connected(server) as client:
        assert (await client.get("/async-def-dependency")).json() == "somebody"
        assert (await client.get("/def-dependency")).json() == "nobody"

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
    server = serve(FEW, strict=False, timeout_graceful_shutdown=0.1)
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


async def test_without_a_limit_a_stop_waits_for_calls_that_nobody_waits_for(
    serve: Serve,
) -> None:
    server = serve(FEW, env={"READ_SECONDS": "2"})
    async with connected(server) as client:
        async with connected(server) as other:
            calls = get(other, "/card", THREADS + 1)
            await threads(client, busy=THREADS, waiting=1)
            for call in calls:
                call.cancel()
        await client.get("/ping")
        server.terminate()
    await asyncio.to_thread(server.wait_for_log, "Waiting for background tasks")
    assert await asyncio.to_thread(server.wait) == -15
