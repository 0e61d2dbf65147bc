"""concurrency/fan_out: what arrived is kept, what did not is named, nothing runs on."""

import asyncio
from typing import Any

import httpx2
import pytest

from recipes.concurrency import fan_out
from tests.conftest import Serve
from tests.harness.server import Server

NAIVE = "tests.behavior.concurrency.naive_fan_out"
RECIPE = "recipes.concurrency.fan_out"
PATIENT = "tests.behavior.concurrency.patient_fan_out"
UPSTREAM = "tests.behavior.concurrency.upstream_fan_out"


@pytest.fixture
def upstream(serve: Serve) -> Server:
    return serve(UPSTREAM, strict=False)


@pytest.fixture
def recipe(serve: Serve, upstream: Server) -> Server:
    return serve(RECIPE, env={"SHOP_URL": upstream.url})


@pytest.fixture
def patient(serve: Serve, upstream: Server) -> Server:
    """The recipe where its deadline is not what a test is about."""
    return serve(PATIENT, env={"SHOP_URL": upstream.url})


@pytest.fixture
def naive(serve: Serve, upstream: Server) -> Server:
    return serve(NAIVE, env={"SHOP_URL": upstream.url}, strict=False)


async def seen(upstream: Server) -> dict[str, Any]:
    async with upstream.client() as client:
        found: dict[str, Any] = (await client.get("/seen")).json()
        return found


async def wait_until(upstream: Server, key: str, value: object) -> None:
    while (await seen(upstream))[key] != value:
        await asyncio.sleep(0.02)


async def ask(server: Server, path: str, *also: str) -> httpx2.Response:
    async with server.client() as client:
        return await client.get(path, params={"also": also})


@pytest.mark.defect("D71")
async def test_an_error_page_is_a_gap_and_not_a_product(
    patient: Server, naive: Server
) -> None:
    page = (await ask(patient, "/page/anvil", "missing", "broken", "rope")).json()
    assert page == {
        "product": {"sku": "anvil", "price": 5},
        "also": {"rope": {"sku": "rope", "price": 5}},
        "gaps": {"missing": "No such item", "broken": "No usable answer"},
    }
    also = ["zinc", "anvil", "rope", "glue"]  # their order, not that of arrival
    answer = await ask(patient, "/page/anvil", *also, "anvil")
    assert [*answer.json()["also"]] == also
    assert "cache-control" not in answer.headers
    answer = await ask(patient, "/page/anvil", "missing")
    assert answer.headers["cache-control"] == "no-store"
    answer = await ask(patient, "/page/anvil")
    assert (answer.status_code, answer.json()["also"]) == (200, {})
    answer = await ask(naive, "/page/anvil", "missing", "broken", "rope")
    assert answer.status_code == 200
    assert answer.json()["also"][:2] == [
        {"detail": "secret"},
        {"sku": "secret", "price": 1},
    ]


@pytest.mark.defect("D72")
async def test_when_the_essential_call_fails_no_other_runs_on(
    patient: Server, naive: Server, upstream: Server
) -> None:
    answer = await ask(patient, "/page/dropped-late", "slow-1", "slow-2")
    assert answer.status_code == 502
    await wait_until(upstream, "cut off", ["slow-1", "slow-2"])
    assert (await ask(patient, "/page/anvil", "rope")).json()["gaps"] == {}

    answer = await ask(naive, "/shared/page/dropped-late", "slow-3", "slow-4")
    assert answer.status_code == 500
    assert (await seen(upstream))["running"] == ["slow-3", "slow-4"]
    async with upstream.client() as client:
        await client.post("/release")
    await wait_until(upstream, "running", [])
    assert (await seen(upstream))["finished"][-2:] == ["slow-3", "slow-4"]  # sorted


@pytest.mark.defect("D73")
async def test_requests_share_their_connections(
    patient: Server, naive: Server, upstream: Server
) -> None:
    also = ["rope", "glue", "missing", "broken", "words"]

    async def connections(server: Server) -> int:
        before = (await seen(upstream))["connections"]
        for _ in range(3):
            assert (await ask(server, "/page/anvil", *also)).status_code == 200
        return int((await seen(upstream))["connections"] - before)

    assert await connections(patient) <= 6  # one for each call of a request
    assert await connections(naive) == 18  # one for each call


@pytest.mark.defect("D74")
async def test_an_answer_that_is_not_a_product_is_not_our_500(
    patient: Server, naive: Server
) -> None:
    page = (
        await ask(patient, "/page/anvil", "text", "words", "huge", "dropped")
    ).json()
    assert page["gaps"] == {
        "text": "No usable answer",
        "words": "No usable answer",
        "huge": "No usable answer",
        "dropped": "No usable answer",
    }
    assert page["also"] == {}
    answer = await ask(patient, "/page/text", "anvil")
    assert (answer.status_code, answer.json()) == (502, {"detail": "No usable answer"})
    assert (await ask(patient, "/page/missing", "anvil")).status_code == 404
    assert (await ask(naive, "/page/anvil", "text")).status_code == 500
    assert (await ask(naive, "/page/anvil", "dropped")).status_code == 500


async def test_calls_that_hang_cost_the_deadline_and_no_more(
    recipe: Server, naive: Server, upstream: Server
) -> None:
    """So many at a time, none outlives the response, and a stop waits for it."""
    slow = [f"slow-{n}" for n in range(49)]
    pages = [
        asyncio.create_task(ask(recipe, "/page/anvil", "rope", *slow)),
        asyncio.create_task(ask(recipe, "/page/slow-x", "rope")),
    ]
    while len((await seen(upstream))["running"]) < fan_out.SLOTS + 1:
        await asyncio.sleep(0.02)
    recipe.terminate()
    optional, essential = await asyncio.gather(*pages)
    late = "No answer in time"
    assert optional.status_code == 200
    assert [*optional.json()["also"]] == ["rope"]
    assert [*optional.json()["gaps"].items()] == [(sku, late) for sku in slow]
    assert (essential.status_code, essential.json()) == (504, {"detail": late})
    assert await asyncio.to_thread(recipe.wait) == -15
    await wait_until(upstream, "running", [])
    # An essential call takes no slot, and the second page has slots of its own.
    assert (await seen(upstream))["peak"] <= fan_out.SLOTS + 3

    everything = asyncio.create_task(ask(naive, "/page/anvil", "rope", *slow))
    while (await seen(upstream))["peak"] < len(slow):
        await asyncio.sleep(0.02)
    upstream.kill()
    assert (await everything).status_code == 500


async def test_bad_requests_make_no_call(recipe: Server, upstream: Server) -> None:
    for also in (["x"] * 51, ["a/../b"], ["x?admin=1"], [""], [".."], ["x" * 41]):
        assert (await ask(recipe, "/page/anvil", *also)).status_code == 422
    for sku in ("%2e%2e", "x%3Fa", "x%23", "x%0a", "..%2fseen"):
        assert (await ask(recipe, f"/page/{sku}", "rope")).status_code in (404, 422)
    assert (await seen(upstream))["finished"] == []


async def test_more_calls_than_connections_all_get_an_answer(
    patient: Server, upstream: Server
) -> None:
    also = [f"sku-{n}" for n in range(10)]
    asked = [ask(patient, "/page/anvil", *also, *also) for _ in range(12)]
    for answer in await asyncio.gather(*asked):
        assert answer.json()["gaps"] == {}
        assert [*answer.json()["also"]] == also
    found = await seen(upstream)
    assert found["connections"] <= 100
    assert found["finished"].count("sku-0") == 12  # twice in a request is once
    upstream.stop()
    answer = await ask(patient, "/page/anvil", "rope")
    assert (answer.status_code, answer.json()) == (502, {"detail": "No usable answer"})


async def test_without_a_url_a_stand_in_answers(serve: Serve) -> None:
    server = serve(RECIPE)
    page = (await ask(server, "/page/anvil", "rope", "broken")).json()
    assert [*page["also"]] == ["rope"]
    assert page["gaps"] == {"broken": "No usable answer"}
    assert (await ask(server, "/page/broken", "slow")).status_code == 502
