"""concurrency/first_success: one service that works is enough, and no loser runs on."""

import asyncio
import socket
from typing import Any

import httpx2
import pytest

from tests.conftest import Serve
from tests.harness.server import Server

RECIPE = "recipes.concurrency.first_success"
NAIVE = "tests.behavior.concurrency.naive_first_success"
PATIENT = "tests.behavior.concurrency.patient_first_success"
LATE_CLEANUP = "tests.behavior.concurrency.late_cleanup_first_success"


@pytest.fixture
def upstream(serve: Serve) -> Server:
    return serve("tests.behavior.concurrency.upstream_first_success", strict=False)


@pytest.fixture
def refused() -> str:
    """The URL of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def urls(upstream: Server, *services: str) -> dict[str, str]:
    """The environment that names these services; one with a scheme is kept."""
    found = [s if ":" in s else f"{upstream.url}/{s}" for s in services]
    return {"RATE_URLS": " ".join(found)}


async def ask(server: Server, path: str = "/rates/EUR") -> httpx2.Response:
    async with server.client() as client:
        return await client.get(path)


async def seen(upstream: Server) -> dict[str, Any]:
    found: dict[str, Any] = (await ask(upstream, "/seen")).json()
    return found


async def wait_until(upstream: Server, key: str, value: object) -> None:
    while (await seen(upstream))[key] != value:
        await asyncio.sleep(0.02)


async def release(upstream: Server) -> None:
    async with upstream.client() as client:
        await client.post("/release")


GOOD = {"currency": "EUR", "rate": 1.25}


@pytest.mark.defect("D78", "D79")
async def test_the_calls_are_tasks(serve: Serve, upstream: Server) -> None:
    env = urls(upstream, "good", "slow")
    recipe, naive = serve(RECIPE, env=env), serve(NAIVE, env=env, strict=False)
    assert (await ask(recipe)).json() == GOOD  # strict: a warning is an error
    assert (await ask(naive, "/coroutines/EUR")).status_code == 500
    naive.wait_for_log("TypeError: Passing coroutines is forbidden, use tasks")
    naive.wait_for_log("coroutine 'ask' was never awaited")


@pytest.mark.defect("D80")
async def test_a_service_that_refuses_does_not_win(
    serve: Serve, upstream: Server, refused: str
) -> None:
    env = urls(upstream, refused, "held", "slow")
    naive = serve(NAIVE, env=env, strict=False)
    assert (await ask(naive)).status_code == 500  # "held" answers later
    recipe = serve(PATIENT, env=env)
    answer = asyncio.create_task(ask(recipe))
    await asyncio.to_thread(recipe.wait_for_log, "ConnectError")
    await release(upstream)
    assert (await answer).json() == GOOD
    await wait_until(upstream, "running", [])


@pytest.mark.defect("D81")
async def test_a_fast_bad_answer_does_not_win(serve: Serve, upstream: Server) -> None:
    naive = serve(NAIVE, env=urls(upstream, "held", "broken"), strict=False)
    answer = await ask(naive)
    assert (answer.status_code, answer.json()["rate"]) == (200, 666)
    bad = ["broken", "moved", "text", "list", "zero", "nan", "binary", "empty"]
    recipe = serve(PATIENT, env=urls(upstream, "held", *bad))
    race = asyncio.create_task(ask(recipe))
    for service in bad:
        await asyncio.to_thread(recipe.wait_for_log, f"/{service}/ has no rate of EUR")
    await release(upstream)
    assert (await race).json() == GOOD


async def test_losers_have_ended_before_the_response_starts(
    serve: Serve, upstream: Server
) -> None:
    env = urls(upstream, "slow", "good", "slow")
    recipe = serve(LATE_CLEANUP, env=env)
    naive = serve(LATE_CLEANUP, env=env | {"NAIVE": "1"}, strict=False)

    async def order(server: Server) -> list[str]:
        assert (await ask(server)).json() == GOOD
        await wait_until(upstream, "running", [])
        log = await asyncio.to_thread(server.wait_for_log, "cleaned up")
        steps = ("cleaned up", "response starts")
        return [line for line in log.splitlines() if line in steps]

    assert await order(recipe) == ["cleaned up", "cleaned up", "response starts"]
    assert (await order(naive))[0] == "response starts"


async def test_all_failed_is_a_502_with_reasons_in_the_log_alone(
    serve: Serve, upstream: Server, refused: str
) -> None:
    recipe = serve(RECIPE, env=urls(upstream, "broken", "text", refused))
    answer = await ask(recipe)
    assert (answer.status_code, answer.json()) == (502, {"detail": "No usable answer"})
    for reason in ("503 Service Unavailable", "1 validation error", "ConnectError"):
        assert reason in recipe.log
    assert (await ask(recipe, "/rates/euro")).status_code == 422
    assert (await ask(recipe, "/rates/%2e%2e")).status_code in (404, 422)
    assert (await seen(upstream))["asked"] == ["broken", "text"]


async def test_no_answer_in_time_is_a_504_also_while_the_server_stops(
    serve: Serve, upstream: Server
) -> None:
    recipe = serve(RECIPE, env=urls(upstream, "slow", "broken", "slow"))
    answer = asyncio.create_task(ask(recipe))
    await wait_until(upstream, "running", ["slow", "slow"])
    recipe.terminate()
    found = await answer
    assert (found.status_code, found.json()) == (504, {"detail": "No answer in time"})
    assert await asyncio.to_thread(recipe.wait) == -15
    await wait_until(upstream, "running", [])


async def test_a_service_that_hangs_takes_no_connections_from_the_others(
    serve: Serve, upstream: Server
) -> None:
    recipe = serve(PATIENT, env=urls(upstream, "slow", "slow", "broken", "good"))
    async with recipe.client() as client:
        calls = [client.get("/rates/EUR") for _ in range(50)]
        answers = await asyncio.gather(*calls)
    assert [answer.json() for answer in answers] == [GOOD] * 50
    await wait_until(upstream, "running", [])
    upstream.stop()
    assert (await ask(recipe)).status_code == 502


async def test_without_urls_stand_ins_answer(serve: Serve) -> None:
    recipe = serve(RECIPE)
    assert (await ask(recipe)).json() == GOOD
    assert (await ask(recipe, "/rates/XXX")).status_code == 502
