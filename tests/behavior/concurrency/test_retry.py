"""concurrency/retry: what may pass is repeated, if that is safe."""

import asyncio
from typing import Any

import httpx2
import pytest

from tests.conftest import Serve
from tests.harness.server import Server

FOLDER = "tests.behavior.concurrency"
TOKENS = 60  # in quick_retry, which is not imported: it patches stamina


@pytest.fixture
def upstream(serve: Serve) -> Server:
    return serve(f"{FOLDER}.upstream_retry", strict=False)


@pytest.fixture
def quick(serve: Serve, upstream: Server) -> Server:
    """The recipe without waits."""
    return serve(f"{FOLDER}.quick_retry", env={"SHOP_URL": upstream.url})


@pytest.fixture
def naive(serve: Serve, upstream: Server) -> Server:
    env = {"SHOP_URL": upstream.url}
    return serve(f"{FOLDER}.naive_retry", env=env, strict=False)


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
        assert (await ask(quick, sku)).json() == {"units": 3}, sku
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
    quick: Server, upstream: Server
) -> None:
    async def calls_in_outage(server: Server) -> int:
        before = (await seen(upstream))["calls"].get("down", 0)
        async with server.client() as client:
            for _ in range(5):
                some = [client.get("/stock/down") for _ in range(20)]
                for answer in await asyncio.gather(*some):
                    assert answer.status_code == 502
        return int((await seen(upstream))["calls"]["down"] - before)

    assert await calls_in_outage(quick) < 100 + TOKENS / 2
    assert await calls_in_outage(quick) == 100  # no retry is left
    async with quick.client() as client, upstream.client() as control:
        await control.post("/up")
        for _ in range(16):  # 32 tokens
            some = [client.get("/stock/down") for _ in range(20)]
            for answer in await asyncio.gather(*some):
                assert answer.status_code == 200
    assert (await ask(quick, "status-503")).status_code == 200


async def test_the_outage_of_the_naive_form_gets_three_times_the_calls(
    naive: Server, upstream: Server
) -> None:
    async with naive.client() as client:
        await asyncio.gather(*(client.get("/stock/down") for _ in range(20)))
    assert (await seen(upstream))["calls"]["down"] == 60


async def test_a_call_that_hangs_ends_at_the_deadline_also_at_a_stop(
    serve: Serve, upstream: Server
) -> None:
    short = serve(f"{FOLDER}.short_retry", env={"SHOP_URL": upstream.url})
    answer = asyncio.create_task(ask(short, "hangs"))
    while "hangs" not in (await seen(upstream))["calls"]:
        await asyncio.sleep(0.02)
    short.terminate()
    assert (await answer).status_code == 504
    assert await asyncio.to_thread(short.wait) == -15
    assert (await seen(upstream))["calls"]["hangs"] == 1  # cancelled, not repeated


async def test_a_service_that_is_gone_is_a_502(upstream: Server, quick: Server) -> None:
    upstream.stop()
    assert (await ask(quick, "anvil")).status_code == 502
    quick.wait_for_log("ConnectError")


async def test_without_a_url_a_stand_in_answers(serve: Serve) -> None:
    recipe = serve("recipes.concurrency.retry")
    assert (await ask(recipe, "anvil")).json() == {"units": 3}
    assert (await ask(recipe, "busy")).status_code == 502
