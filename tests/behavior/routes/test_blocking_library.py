"""routes/blocking_library: a library that hangs takes no threads but its own."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from fastapi.testclient import TestClient

from recipes.routes.blocking_library import app
from tests.behavior.routes.slow_register import THREADS, WAITING
from tests.conftest import Serve
from tests.harness.server import Server

RECIPE = "tests.behavior.routes.slow_register"
NAIVE = "tests.behavior.routes.slow_register:naive_app"
PLACES = THREADS + WAITING
DEFAULT_THREADS = 40


@asynccontextmanager
async def down(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with as many connections as it needs, while the register hangs."""
    limits = httpx2.Limits(max_connections=None)
    async with server.client(limits=limits) as client:
        await client.get("/down")
        yield client


def look_up(client: httpx2.AsyncClient, times: int) -> set[asyncio.Task[int]]:
    async def one(number: int) -> int:
        return (await client.get(f"/companies/{number}")).status_code

    return {asyncio.create_task(one(number)) for number in range(times)}


async def test_a_library_that_hangs_does_not_starve_other_routes(
    serve: Serve,
) -> None:
    recipe, naive = serve(RECIPE), serve(NAIVE, strict=False)
    load = DEFAULT_THREADS + PLACES
    async with down(recipe) as client:
        calls = look_up(client, load)
        while sum(call.done() for call in calls) < DEFAULT_THREADS:
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=0.1)
        assert (await client.get("/ping")).json() == "pong"
        await client.get("/up")
        statuses = Counter(await asyncio.gather(*calls))
        assert statuses == {200: PLACES, 503: DEFAULT_THREADS}

    async with down(naive) as client:
        calls = look_up(client, DEFAULT_THREADS)
        while (await client.get("/busy")).json() < DEFAULT_THREADS:
            await asyncio.sleep(0.01)
        ping = asyncio.create_task(client.get("/ping"))
        for _ in range(20):
            await client.get("/down")
        assert not ping.done()
        await client.get("/up")
        assert (await ping).json() == "pong"
        await asyncio.gather(*calls)


async def test_who_is_refused_is_told_when_to_come_back(serve: Serve) -> None:
    async with down(serve(RECIPE)) as client:
        calls = look_up(client, PLACES + 1)
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert [call.result() for call in done] == [503]
        refused = await client.get("/companies/7")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        await client.get("/up")
        await asyncio.gather(*calls)
        assert (await client.get("/companies/7")).json() == "Company 7"


async def test_an_abandoned_thread_stays_taken_but_a_token_does_not(
    serve: Serve,
) -> None:
    async with down(serve(RECIPE)) as client:
        for how in ("bulkhead", "limiter"):
            for _ in range(2 * THREADS):
                assert (await client.get(f"/abandoned/{how}")).is_success
        most: dict[str, int] = {}
        while most.get("limiter", 0) <= THREADS or most["bulkhead"] < THREADS:
            most = (await client.get("/most")).json()
        assert most["bulkhead"] == THREADS
        calls = look_up(client, WAITING + 1)  # which wait for a thread, but one
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert [call.result() for call in done] == [503]
        await client.get("/up")
        assert Counter(await asyncio.gather(*calls)) == {200: WAITING, 503: 1}


async def test_a_call_that_is_cancelled_while_it_waits_leaves_nothing(
    serve: Serve,
) -> None:
    async with down(serve(RECIPE)) as client:
        for _ in range(THREADS + 2 * WAITING):
            assert (await client.get("/abandoned/bulkhead")).is_success
        assert (await client.get("/kept")).json() == THREADS
        await client.get("/up")
        assert (await client.get("/companies/7")).is_success
        while (await client.get("/kept")).json():  # the threads end
            await asyncio.sleep(0.01)
        assert (await client.get("/most")).json()["calls"] == THREADS


async def test_the_timeout_of_the_library_is_a_504(serve: Serve) -> None:
    async with down(serve(RECIPE, env={"CALL_SECONDS": "0.1"})) as client:
        assert await asyncio.gather(*look_up(client, PLACES)) == [504] * PLACES
        await client.get("/up")
        assert (await client.get("/companies/7")).is_success


async def test_context_variables_reach_the_thread(serve: Serve) -> None:
    async with serve(RECIPE).client() as client:
        assert (await client.get("/user")).json() == "somebody"


async def test_sigterm_does_not_wait_for_a_thread_but_ctrl_c_does(serve: Serve) -> None:
    patient, hasty = (
        serve(RECIPE, strict=False, timeout_graceful_shutdown=0.2) for _ in range(2)
    )
    async with down(patient) as one, down(hasty) as two:
        calls = {*look_up(one, PLACES + 1), *look_up(two, PLACES + 1)}
        while sum(call.done() for call in calls) < 2:  # refused: the others are there
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=0.1)
        patient.signal(signal.SIGINT)
        hasty.terminate()
        assert await asyncio.to_thread(hasty.wait, 15) == -15
        await asyncio.to_thread(patient.wait_for_log, "Finished server process")
        await asyncio.gather(*calls, return_exceptions=True)
    assert patient.is_running
    patient.kill()


def test_what_is_no_number_is_refused() -> None:
    client = TestClient(app)
    for number in ("-1", "x", "1000000000", "9" * 5000, "1.5", "%00"):
        assert client.get(f"/companies/{number}").status_code == 422
