"""concurrency/bounded: ten calls at a time, of all requests together."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
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


@pytest.fixture(scope="module")
def servers(serve_for_file: Serve) -> dict[str, Server]:
    """The shop, the recipe and its naive form, for most tests."""
    upstream = serve_for_file(UPSTREAM, strict=False)
    env = {"SHOP_URL": upstream.url}
    return {
        "upstream": upstream,
        "recipe": serve_for_file(RECIPE, env=env),
        "naive": serve_for_file(NAIVE, env=env, strict=False),
    }


@pytest.fixture
def upstream(servers: dict[str, Server]) -> Server:
    """The shop, that has not been asked yet."""
    httpx2.post(f"{servers['upstream'].url}/reset").raise_for_status()
    return servers["upstream"]


@pytest.fixture
def recipe(servers: dict[str, Server]) -> Server:
    return servers["recipe"]


@pytest.fixture
def naive(servers: dict[str, Server]) -> Server:
    return servers["naive"]


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


async def test_many_items_are_ten_calls_at_a_time(
    recipe: Server, upstream: Server
) -> None:
    skus = [f"sku-{number}" for number in range(200)]
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
    skus = [f"sku-{number}" for number in range(110)]
    answer = asyncio.create_task(ask(recipe, skus))
    await wait_until(upstream, running=LIMIT)
    assert (await ask(naive, skus)).status_code == 500  # a second passes here
    naive.wait_for_log("PoolTimeout")
    await release(upstream)
    assert len((await answer).json()) == 110


async def test_requests_share_the_limit(
    recipe: Server, naive: Server, upstream: Server
) -> None:
    async def peak(server: Server, path: str, expected: int) -> int:
        """With five requests, when no further call starts."""
        async with upstream.client() as client:
            await client.post("/reset")
        five = [asyncio.create_task(ask(server, ["sku"] * 20, path)) for _ in range(5)]
        await wait_until(upstream, running=expected)
        await release(upstream)
        for answer in await asyncio.gather(*five):
            assert len(answer.json()) == 20
        return int((await seen(upstream))["peak"])

    assert await peak(recipe, "/prices", LIMIT) == LIMIT
    assert await peak(naive, "/semaphore/prices", 5 * LIMIT) == 5 * LIMIT


async def test_a_small_request_need_not_wait_for_a_large_one() -> None:
    """In process, where the order of the calls is exact."""

    async def task_per_item(
        call: Callable[[str], Awaitable[None]],
        items: list[str],
        slots: asyncio.Semaphore,
    ) -> None:
        async def one(item: str) -> None:
            async with slots:
                await call(item)

        await asyncio.gather(*(one(item) for item in items))

    async def calls_before_the_small_one(form: Callable[..., Awaitable[Any]]) -> int:
        called: list[str] = []

        async def call(item: str) -> None:
            called.append(item)
            await asyncio.sleep(0)

        slots = asyncio.Semaphore(LIMIT)
        requests = [["large"] * 100, ["small"]]
        await asyncio.gather(*(form(call, items, slots) for items in requests))
        return called.index("small")

    assert await calls_before_the_small_one(bounded.bounded) == LIMIT
    assert await calls_before_the_small_one(task_per_item) == 100


async def test_the_first_failure_cancels_the_rest(
    serve: Serve, recipe: Server, upstream: Server
) -> None:
    for bad in ("quick-broken", "quick-text"):
        held = [f"sku-{number}" for number in range(9)]
        answer = await ask(recipe, [*held, *["quick"] * 20, bad, *["never"] * 900])
        assert answer.status_code == 502
        assert answer.json() == {"detail": "No usable answer"}
        await wait_until(upstream, running=0)
    assert len((await seen(upstream))["asked"]) <= 2 * (9 + 20 + 1)
    assert "500 Internal Server Error" in recipe.log
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    alone = serve(RECIPE, env={"SHOP_URL": nobody})
    assert (await ask(alone, ["rope"])).status_code == 502


async def test_the_deadline_holds_for_those_that_wait_too_also_at_a_stop(
    serve: Serve, upstream: Server
) -> None:
    short = serve(SHORT, env={"SHOP_URL": upstream.url})
    assert (await ask(short, ["sku"] * 30)).status_code == 504
    assert (await ask(short, ["quick-broken"] * 30)).status_code == 502
    assert len((await ask(short, ["quick"] * 30)).json()) == 30  # the slots are free
    await wait_until(upstream, running=0)

    asked = [asyncio.create_task(ask(short, ["sku"] * 30)) for _ in range(3)]
    await wait_until(upstream, running=LIMIT)
    short.terminate()
    for answer in await asyncio.gather(*asked):
        assert answer.status_code == 504
    await wait_until(upstream, running=0)
    assert (await seen(upstream))["peak"] == LIMIT
    assert await asyncio.to_thread(short.wait) == -15


async def test_a_call_that_hangs_is_late_too(serve: Serve, upstream: Server) -> None:
    short = serve(SHORT, env={"SHOP_URL": upstream.url, "TIMEOUT": "1"})
    answer = await ask(short, ["sku"])
    assert (answer.status_code, answer.json()) == (504, {"detail": "No usable answer"})
    assert "no prices: ReadTimeout" in short.log


async def test_bad_requests_make_no_call(recipe: Server, upstream: Server) -> None:
    for skus in (["x"] * 1001, ["a/../b"], [""], ["x?y"], ["x" * 41]):
        assert (await ask(recipe, skus)).status_code == 422
    with socket.create_connection(("127.0.0.1", recipe.port), timeout=20) as huge:
        huge.sendall(
            b"POST /prices HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n"
        )
        start = await asyncio.to_thread(huge.recv, 100)
        assert start.startswith(b"HTTP/1.1 413")
    assert (await seen(upstream))["asked"] == []


async def test_without_a_url_a_stand_in_answers(serve: Serve) -> None:
    server = serve(RECIPE)
    assert len((await ask(server, ["anvil", "rope"])).json()) == 2
    assert (await ask(server, ["anvil", "broken"])).status_code == 502
