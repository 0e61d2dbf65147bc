"""concurrency/bounded: ten calls at a time, of all requests together."""

import asyncio
from typing import Any

import httpx2
import pytest

from recipes.concurrency import bounded
from tests.conftest import Serve
from tests.harness.server import Server

RECIPE = "recipes.concurrency.bounded"
NAIVE = "tests.behavior.concurrency.naive_bounded"
SHORT = "tests.behavior.concurrency.short_bounded"
UPSTREAM = "tests.behavior.concurrency.upstream_bounded"
LIMIT = bounded.AT_A_TIME


@pytest.fixture
def upstream(serve: Serve) -> Server:
    return serve(UPSTREAM, strict=False)


@pytest.fixture
def recipe(serve: Serve, upstream: Server) -> Server:
    return serve(RECIPE, env={"SHOP_URL": upstream.url})


@pytest.fixture
def naive(serve: Serve, upstream: Server) -> Server:
    return serve(NAIVE, env={"SHOP_URL": upstream.url}, strict=False)


async def ask(
    server: Server, skus: list[str], path: str = "/prices"
) -> httpx2.Response:
    async with server.client() as client:
        return await client.post(path, json=skus)


async def seen(upstream: Server) -> dict[str, Any]:
    async with upstream.client() as client:
        found: dict[str, Any] = (await client.get("/seen")).json()
        return found


async def wait_until(upstream: Server, **expected: int) -> None:
    while not expected.items() <= (await seen(upstream)).items():
        await asyncio.sleep(0.02)


async def release(upstream: Server) -> None:
    async with upstream.client() as client:
        await client.post("/release")


async def test_a_thousand_items_are_ten_calls_at_a_time(
    recipe: Server, upstream: Server
) -> None:
    skus = [f"sku-{number}" for number in range(1000)]
    answer = asyncio.create_task(ask(recipe, skus))
    await wait_until(upstream, running=LIMIT)
    await release(upstream)
    assert [price["sku"] for price in (await answer).json()] == skus
    assert (await seen(upstream))["peak"] == LIMIT
    assert (await ask(recipe, [])).json() == []
    assert len((await ask(recipe, ["rope"] * 30)).json()) == 30


async def test_calls_that_wait_for_their_turn_do_not_fail(
    recipe: Server, naive: Server, upstream: Server
) -> None:
    """The naive form's pool is full of calls that the shop has not answered."""
    skus = [f"sku-{number}" for number in range(150)]
    answer = asyncio.create_task(ask(recipe, skus))
    await wait_until(upstream, running=LIMIT)
    assert (await ask(naive, skus)).status_code == 500  # a second passes here
    naive.wait_for_log("PoolTimeout")
    await release(upstream)
    assert len((await answer).json()) == 150


async def test_requests_share_the_limit(serve: Serve) -> None:
    async def peak(target: str, path: str) -> int:
        """With five requests, when no further call starts."""
        shop = serve(UPSTREAM, strict=False)
        server = serve(target, env={"SHOP_URL": shop.url}, strict=target == RECIPE)
        five = [asyncio.create_task(ask(server, ["sku"] * 40, path)) for _ in range(5)]
        await wait_until(shop, running=LIMIT if target == RECIPE else 5 * LIMIT)
        await release(shop)
        for answer in await asyncio.gather(*five):
            assert len(answer.json()) == 40
        return int((await seen(shop))["peak"])

    assert await peak(RECIPE, "/prices") == LIMIT
    assert await peak(NAIVE, "/semaphore/prices") == 5 * LIMIT


async def test_the_first_failure_cancels_the_rest(
    recipe: Server, upstream: Server
) -> None:
    for bad in ("quick-broken", "quick-text"):
        held = [f"sku-{number}" for number in range(9)]
        answer = await ask(recipe, [*held, *["quick"] * 20, bad, *["never"] * 900])
        assert answer.status_code == 502
        assert answer.json() == {"detail": "No usable answer"}
        await wait_until(upstream, running=0)
    assert (await seen(upstream))["asked"] <= 2 * (9 + 20 + 1)
    upstream.stop()
    assert (await ask(recipe, ["rope"])).status_code == 502
    assert "500 Internal Server Error" in recipe.log


async def test_the_deadline_holds_for_those_that_wait_too_also_at_a_stop(
    serve: Serve, upstream: Server
) -> None:
    short = serve(SHORT, env={"SHOP_URL": upstream.url})
    asked = [asyncio.create_task(ask(short, ["sku"] * 30)) for _ in range(3)]
    await wait_until(upstream, running=LIMIT)
    short.terminate()
    for answer in await asyncio.gather(*asked):
        assert answer.status_code == 504
    await wait_until(upstream, running=0)
    assert (await seen(upstream))["peak"] == LIMIT
    assert await asyncio.to_thread(short.wait) == -15


async def test_slots_are_free_again_after_failures(
    serve: Serve, upstream: Server
) -> None:
    short = serve(SHORT, env={"SHOP_URL": upstream.url})
    assert (await ask(short, ["sku"] * 30)).status_code == 504
    assert (await ask(short, ["quick-broken"] * 30)).status_code == 502
    assert len((await ask(short, ["quick"] * 30)).json()) == 30


async def test_bad_requests_make_no_call(recipe: Server, upstream: Server) -> None:
    for skus in (["x"] * 1001, ["a/../b"], [""], ["x?y"], ["x" * 41]):
        assert (await ask(recipe, skus)).status_code == 422
    assert (await ask(recipe, ["x" * 70_000])).status_code == 413
    assert (await seen(upstream))["asked"] == 0


async def test_without_a_url_a_stand_in_answers(serve: Serve) -> None:
    server = serve(RECIPE)
    assert len((await ask(server, ["anvil", "rope"])).json()) == 2
    assert (await ask(server, ["anvil", "broken"])).status_code == 502
