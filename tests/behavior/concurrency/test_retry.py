"""concurrency/retry: what may pass is repeated, if that is safe."""

import asyncio
import socket
from typing import Any

import httpx2
import pytest

from tests.conftest import Serve
from tests.harness.server import Server

FOLDER = "tests.behavior.concurrency"
TOKENS = 10  # in quick_retry, which is not imported: it patches stamina


@pytest.fixture(scope="module")
def servers(serve_for_file: Serve) -> dict[str, Server]:
    """The shop, the recipe without waits and the naive form, for most tests."""
    upstream = serve_for_file(f"{FOLDER}.upstream_retry", strict=False)
    env = {"SHOP_URL": upstream.url}
    return {
        "upstream": upstream,
        "quick": serve_for_file(f"{FOLDER}.quick_retry", env=env),
        "naive": serve_for_file(f"{FOLDER}.naive_retry", env=env, strict=False),
    }


def fresh(server: Server) -> Server:
    """`server` with no calls and all tokens."""
    httpx2.post(f"{server.url}/reset").raise_for_status()
    return server


@pytest.fixture
def upstream(servers: dict[str, Server]) -> Server:
    return fresh(servers["upstream"])


@pytest.fixture
def quick(servers: dict[str, Server]) -> Server:
    return fresh(servers["quick"])


@pytest.fixture
def naive(servers: dict[str, Server]) -> Server:
    return servers["naive"]


async def ask(server: Server, sku: str, method: str = "GET") -> httpx2.Response:
    async with server.client() as client:
        return await client.request(method, f"/stock/{sku}")


async def seen(upstream: Server) -> dict[str, Any]:
    async with upstream.client() as client:
        found: dict[str, Any] = (await client.get("/seen")).json()
        return found


async def test_an_order_whose_answer_is_lost_is_placed_once(
    quick: Server, naive: Server, upstream: Server
) -> None:
    answer = await ask(quick, "anvil", "POST")
    assert (answer.status_code, answer.json()) == (200, {"units": 3})
    found = await seen(upstream)
    assert (found["calls"]["anvil"], found["taken"]) == (2, 1)

    assert (await ask(naive, "rope", "POST")).status_code == 502
    found = await seen(upstream)
    assert (found["calls"]["rope"], found["taken"]) == (3, 1 + 3)

    async with quick.client() as client:
        assert (await client.post("/without-key")).status_code == 502
    assert (await seen(upstream))["calls"]["without-key"] == 1


async def test_what_may_pass_is_repeated_and_the_rest_is_not(
    quick: Server, naive: Server, upstream: Server
) -> None:
    passing = [f"status-{code}" for code in (429, 502, 503, 504)]
    passing += ["dropped", "after-0", "after-2"]
    for sku in passing:
        assert (await ask(fresh(quick), sku)).json() == {"units": 3}, sku
    lasting = ["missing", "broken", "moved", "text", "status-501"]
    lasting += ["after-3", "after-99999999999", "after--1", "after-date"]
    for sku in lasting:
        answer = await ask(quick, sku)
        assert answer.status_code == 502
        assert answer.json() == {"detail": "No usable answer"}
    calls = (await seen(upstream))["calls"]
    assert {sku: calls[sku] for sku in passing} == dict.fromkeys(passing, 3)
    assert {sku: calls[sku] for sku in lasting} == dict.fromkeys(lasting, 1)

    assert (await ask(naive, "missing")).status_code == 502
    assert (await seen(upstream))["calls"]["missing"] == 1 + 3
    assert (await ask(quick, "%2e%2e")).status_code in (404, 422)


async def test_an_outage_is_not_multiplied_and_retries_come_back(
    quick: Server, naive: Server, upstream: Server
) -> None:
    async def get(server: Server) -> list[int]:
        async with server.client() as client:
            some = [client.get("/stock/down") for _ in range(20)]
            return [answer.status_code for answer in await asyncio.gather(*some)]

    async def calls_in_outage(server: Server) -> int:
        before = (await seen(upstream))["calls"].get("down", 0)
        assert await get(server) == [502] * 20
        return int((await seen(upstream))["calls"]["down"] - before)

    assert await calls_in_outage(naive) == 60
    assert 20 < await calls_in_outage(quick) < 20 + TOKENS / 2
    assert await calls_in_outage(quick) == 20  # no retry is left
    assert (await ask(quick, "status-503")).status_code == 502
    async with upstream.client() as control:
        await control.post("/up")
    for _ in range(4):  # 8 tokens
        assert await get(quick) == [200] * 20
    assert (await ask(quick, "status-502")).status_code == 200


async def test_a_call_that_hangs_ends_at_the_deadline_also_at_a_stop(
    serve: Serve, upstream: Server
) -> None:
    env = {"SHOP_URL": upstream.url}
    short = serve(f"{FOLDER}.short_retry", env=env, timeout_graceful_shutdown=30)
    answer = asyncio.create_task(ask(short, "hangs"))
    while "hangs" not in (await seen(upstream))["calls"]:
        await asyncio.sleep(0.02)
    short.terminate()
    assert (await answer).status_code == 504
    assert await asyncio.to_thread(short.wait) == -15
    assert (await seen(upstream))["calls"]["hangs"] == 1  # cancelled, not repeated


async def test_a_service_that_is_gone_is_a_502(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    alone = serve(f"{FOLDER}.quick_retry", env={"SHOP_URL": nobody})
    assert (await ask(alone, "anvil")).status_code == 502
    alone.wait_for_log("ConnectError")


async def test_without_a_url_a_stand_in_answers(serve: Serve) -> None:
    recipe = serve("recipes.concurrency.retry")
    assert (await ask(recipe, "anvil")).json() == {"units": 3}
    assert (await ask(recipe, "busy")).status_code == 502
