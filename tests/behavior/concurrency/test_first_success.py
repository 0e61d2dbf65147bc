"""concurrency/first_success: one service that works is enough, and no loser runs on."""

import asyncio
import socket
from typing import Any

import httpx2
import pytest

from tests.conftest import Serve
from tests.harness.server import Server

FOLDER = "tests.behavior.concurrency"
RECIPE = "recipes.concurrency.first_success"
CHOSEN = f"{FOLDER}.chosen_first_success"
GOOD = 1.25


@pytest.fixture(scope="module")
def servers(serve_for_file: Serve) -> dict[str, Server]:
    """The recipe, its naive form and the services, for most tests."""
    env = {"DEADLINE": "30"}
    upstream = f"{FOLDER}.upstream_first_success"
    return {
        "recipe": serve_for_file(f"{CHOSEN}:recipe", env=env),
        "naive": serve_for_file(f"{CHOSEN}:naive", env=env, strict=False),
        "upstream": serve_for_file(upstream, env=env, strict=False),
    }


@pytest.fixture
def recipe(servers: dict[str, Server]) -> Server:
    return servers["recipe"]


@pytest.fixture
def naive(servers: dict[str, Server]) -> Server:
    return servers["naive"]


@pytest.fixture
def upstream(servers: dict[str, Server]) -> Server:
    """The services, that have not been asked yet."""
    httpx2.post(f"{servers['upstream'].url}/reset").raise_for_status()
    return servers["upstream"]


@pytest.fixture
def refused() -> str:
    """The URL of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def urls(upstream: Server, *services: str) -> str:
    """The URLs of these services; one with a scheme is kept."""
    return " ".join(s if ":" in s else f"{upstream.url}/{s}" for s in services)


async def ask(server: Server, path: str, services: str = "") -> httpx2.Response:
    async with server.client() as client:
        return await client.get(path, headers={"Services": services})


async def seen(upstream: Server) -> dict[str, Any]:
    found: dict[str, Any] = (await ask(upstream, "/seen")).json()
    return found


async def wait_until(upstream: Server, key: str, value: object) -> None:
    while (await seen(upstream))[key] != value:
        await asyncio.sleep(0.02)


async def release(upstream: Server) -> None:
    async with upstream.client() as client:
        await client.post("/release")


@pytest.mark.defect("D78", "D79")
async def test_the_calls_are_tasks(
    recipe: Server, naive: Server, upstream: Server
) -> None:
    both = urls(upstream, "good", "slow")
    answer = await ask(recipe, "/rates/EUR", both)  # strict: a warning is an error
    assert answer.json() == {"currency": "EUR", "rate": GOOD}
    assert (await ask(naive, "/coroutines/EUR", both)).status_code == 500
    naive.wait_for_log("TypeError: Passing coroutines is forbidden, use tasks")
    naive.wait_for_log("coroutine 'ask' was never awaited")


@pytest.mark.defect("D80")
async def test_a_service_that_refuses_does_not_win(
    recipe: Server, naive: Server, upstream: Server, refused: str
) -> None:
    services = urls(upstream, refused, "held", "slow")  # "held" answers later
    assert (await ask(naive, "/rates/REF", services)).status_code == 500
    answer = asyncio.create_task(ask(recipe, "/rates/REF", services))
    await asyncio.to_thread(recipe.wait_for_log, "no rate of REF: ConnectError")
    await release(upstream)
    assert (await answer).json()["rate"] == GOOD
    await wait_until(upstream, "running", [])


@pytest.mark.defect("D81")
async def test_a_fast_bad_answer_does_not_win(
    recipe: Server, naive: Server, upstream: Server
) -> None:
    answer = await ask(naive, "/rates/BAD", urls(upstream, "held", "broken"))
    assert (answer.status_code, answer.json()["rate"]) == (200, 666)
    bad = ["broken", "moved", "text", "list", "zero", "nan", "binary", "empty"]
    services = urls(upstream, *bad, "held")  # the last gets a connection when one ends
    race = asyncio.create_task(ask(recipe, "/rates/BAD", services))
    for service in bad:
        line = f"/{service} has no rate of BAD"
        await asyncio.to_thread(recipe.wait_for_log, line)
    await release(upstream)
    assert (await race).json()["rate"] == GOOD


async def test_losers_have_ended_before_the_response_starts(
    recipe: Server, naive: Server, upstream: Server
) -> None:
    async def order(server: Server) -> list[str]:
        services = urls(upstream, "slow", "good", "slow")
        assert (await ask(server, "/rates/ORD", services)).json()["rate"] == GOOD
        while server.log.count("/rates/ORD: cleaned up") < 2:
            await asyncio.sleep(0.02)
        lines = [line.partition("/rates/ORD: ") for line in server.log.splitlines()]
        return [step for start, _, step in lines if not start and step]

    assert await order(recipe) == ["cleaned up", "cleaned up", "response starts"]
    assert (await order(naive))[0] == "response starts"


async def test_all_failed_is_a_502_with_reasons_in_the_log_alone(
    serve: Serve, upstream: Server, refused: str
) -> None:
    env = {"RATE_URLS": urls(upstream, "broken", "text", refused)}
    recipe = serve(RECIPE, env=env)
    answer = await ask(recipe, "/rates/EUR")
    assert (answer.status_code, answer.json()) == (502, {"detail": "No usable answer"})
    for reason in ("503 Service Unavailable", "1 validation error", "ConnectError"):
        assert reason in recipe.log
    assert (await ask(recipe, "/rates/euro")).status_code == 422
    assert (await ask(recipe, "/rates/%2e%2e")).status_code in (404, 422)
    assert (await seen(upstream))["asked"] == ["broken", "text"]


async def test_no_answer_in_time_is_a_504_also_while_the_server_stops(
    serve: Serve, upstream: Server
) -> None:
    recipe = serve(f"{CHOSEN}:recipe", env={"DEADLINE": "1"})
    services = urls(upstream, "slow", "broken", "slow")
    answer = asyncio.create_task(ask(recipe, "/rates/EUR", services))
    await wait_until(upstream, "running", ["slow", "slow"])
    recipe.terminate()
    found = await answer
    assert (found.status_code, found.json()) == (504, {"detail": "No answer in time"})
    assert await asyncio.to_thread(recipe.wait) == -15
    await wait_until(upstream, "running", [])


async def test_a_service_that_hangs_does_not_keep_the_connections(
    recipe: Server, upstream: Server
) -> None:
    """Five connections, four services, twenty races at once."""
    services = urls(upstream, "slow", "slow", "broken", "good")
    races = [ask(recipe, "/rates/EUR", services) for _ in range(20)]
    rates = [answer.json().get("rate") for answer in await asyncio.gather(*races)]
    assert rates == [GOOD] * 20
    await wait_until(upstream, "running", [])


async def test_without_urls_stand_ins_answer(serve: Serve) -> None:
    recipe = serve(RECIPE)
    assert (await ask(recipe, "/rates/EUR")).json()["rate"] == GOOD
    assert (await ask(recipe, "/rates/XXX")).status_code == 502
