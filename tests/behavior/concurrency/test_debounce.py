"""concurrency/debounce: the newest value is saved once, and no request pays for it."""

import asyncio
import re
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from recipes.concurrency import debounce
from tests.conftest import Serve
from tests.harness.server import Server

GATED = "tests.behavior.concurrency.gated_debounce"
RECIPE = "recipes.concurrency.debounce"
NAIVE = "tests.behavior.concurrency.naive_debounce"
SOON = "QUIET_SECONDS=0.05 MAX_WAIT_SECONDS=1"
NEVER = "QUIET_SECONDS=600 MAX_WAIT_SECONDS=600"


def limited(serve: Serve, settings: str, **options: Any) -> Server:
    env = {"TARGET": RECIPE, "SETTINGS": settings}
    return serve(GATED, env=env, **options)


async def put(client: httpx2.AsyncClient, name: str, text: str) -> int:
    response = await client.put(f"/drafts/{name}", json={"text": text})
    return response.status_code


def told(server: Server) -> list[str]:
    return re.findall(r"^(?:saving|saved) .*(?=\.$)", server.log, re.MULTILINE)


async def logged(server: Server, text: str) -> None:
    await asyncio.to_thread(server.wait_for_log, text)


async def who_is_superseded(server: Server) -> list[int]:
    """The statuses of three requests, the last for another key than the others."""
    async with server.client() as client:
        requests = []
        for name, text in (("ann", "1"), ("ann", "2"), ("bob", "1")):
            requests.append(asyncio.create_task(put(client, name, text)))
            async with server.client() as other:
                await other.get("/openapi.json")  # by now the server has it
        await client.post("/quiet")
        return [await request for request in requests]


@pytest.mark.defect("D106", "D107", "D109")
async def test_each_request_is_accepted_and_each_key_saved(serve: Serve) -> None:
    naive = serve(GATED, env={"TARGET": NAIVE}, strict=False)
    assert await who_is_superseded(naive) == [500, 500, 200]
    assert told(naive) == ["saving bob 1", "saved bob 1"]  # and none of ann's
    assert "CancelledError" in naive.log
    await logged(naive, "RuntimeWarning: coroutine 'save' was never awaited")

    recipe = limited(serve, NEVER)
    assert await who_is_superseded(recipe) == [202, 202, 202]
    recipe.terminate()  # which saves what waits
    await asyncio.to_thread(recipe.wait)
    assert sorted(told(recipe)) == [
        *("saved ann 2", "saved bob 1", "saving ann 2", "saving bob 1"),
    ]


@pytest.mark.defect("D108")
async def test_a_save_that_has_started_is_finished_before_the_next(
    serve: Serve,
) -> None:
    naive = serve(GATED, env={"TARGET": NAIVE}, strict=False)
    async with naive.client() as client, naive.client() as other:
        await client.post("/quiet")
        first = asyncio.create_task(put(client, "ann", "gated"))
        await logged(naive, "saving ann gated.")
        assert await put(other, "ann", "2") == 200
        assert await first == 500
        assert told(naive) == ["saving ann gated", "saving ann 2", "saved ann 2"]

    recipe = limited(serve, SOON)
    async with recipe.client() as client:
        assert await put(client, "ann", "gated") == 202
        await logged(recipe, "saving ann gated.")
        assert await put(client, "ann", "2") == 202
        assert await put(client, "ann", "3") == 202
        assert await put(client, "bob", "1") == 202
        await logged(recipe, "saved bob 1.")  # meanwhile
        assert "saving ann 3" not in told(recipe)
        await client.post("/release")
        await logged(recipe, "saved ann 3.")
    assert [line for line in told(recipe) if "ann" in line] == [
        *("saving ann gated", "saved ann gated", "saving ann 3", "saved ann 3")
    ]


async def test_values_that_keep_coming_are_saved_all_the_same(serve: Serve) -> None:
    recipe = limited(serve, "QUIET_SECONDS=600 MAX_WAIT_SECONDS=0.3")
    async with recipe.client() as client:
        count = 0
        while "saved ann" not in recipe.log:
            count += 1
            assert await put(client, "ann", str(count)) == 202


async def test_keys_are_bounded_and_come_free(serve: Serve) -> None:
    recipe = limited(serve, f"{SOON} MAX_KEYS=2")
    async with recipe.client() as client:
        assert await put(client, "ann", "gated") == 202
        assert await put(client, "bob", "gated") == 202
        response = await client.put("/drafts/cat", json={"text": "1"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert await put(client, "ann", "gated 2") == 202
        await client.post("/release")
        while await put(client, "cat", "2") == 503:
            pass
    await logged(recipe, "saved cat 2.")
    assert "cat 1" not in recipe.log


async def test_only_so_many_are_saved_at_a_time(serve: Serve) -> None:
    recipe = limited(serve, f"{SOON} MAX_SAVES=2")
    async with recipe.client() as client:
        for number in range(6):
            await put(client, f"key-{number}", "gated")
        await logged(recipe, "saving key-1 gated.")
        await put(client, "key-5", "newest gated")  # while it waits for its turn
        assert len(told(recipe)) == 2
        await client.post("/release")
        await logged(recipe, "saved key-5 newest gated.")
    assert "key-5 gated" not in recipe.log


async def test_a_save_that_fails_or_hangs_is_logged_and_the_next_one_works(
    serve: Serve,
) -> None:
    recipe = limited(serve, f"{SOON} SAVE_SECONDS=0.3 MAX_SAVES=1")
    async with recipe.client() as client:
        for text, error in (("fails", "ConnectionError"), ("gated", "TimeoutError")):
            await put(client, "ann", text)
            await logged(recipe, error)
            await put(client, "ann", f"after it {text[:1]}")
            await logged(recipe, f"saved ann after it {text[:1]}.")
    assert recipe.log.count("'ann' is not saved") == 2


async def test_a_stop_saves_what_waits(serve: Serve) -> None:
    recipe = limited(serve, NEVER)
    async with recipe.client() as client:
        for name in ("ann", "bob", "ann"):
            await put(client, name, "last")
    assert told(recipe) == []
    recipe.terminate()
    assert await asyncio.to_thread(recipe.wait) == -15  # `serve` looks for tasks left
    assert sorted(told(recipe)) == [
        *("saved ann last", "saved bob last", "saving ann last", "saving bob last")
    ]


async def test_a_stop_gives_up_a_save_that_hangs(serve: Serve) -> None:
    recipe = limited(serve, f"{SOON} STOP_SECONDS=0.3 MAX_SAVES=1")
    async with recipe.client() as client:
        await put(client, "ann", "gated")
        await logged(recipe, "saving ann")
        await put(client, "bob", "waits for it")
    recipe.terminate()
    assert await asyncio.to_thread(recipe.wait) == -15
    for name in ("ann", "bob"):
        assert f"'{name}' is not saved: cancelled" in recipe.log


def test_what_is_no_draft_is_refused() -> None:
    with TestClient(debounce.app) as client:
        for path in ("A", "x" * 41, "%00", "a%0A"):
            assert client.put(f"/drafts/{path}", json={"text": ""}).status_code == 422
        for body in ({}, {"text": None}, {"text": "x" * 10_001}, "x"):
            assert client.put("/drafts/ann", json=body).status_code == 422
        large = {"text": "x" * 70_000}
        assert client.put("/drafts/ann", json=large).status_code == 413
        assert client.get("/drafts/ann").json() is None


async def test_nothing_is_left_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debounce, "QUIET_SECONDS", 0.001)
    saved: list[str] = []

    async def save(key: str, _: str) -> None:
        saved.append(key)

    debouncer = debounce.Debouncer(save)
    for number in range(100):
        debouncer.put(str(number), "text")
    while len(saved) < 100:
        await asyncio.sleep(0)
    await debouncer.aclose()
    assert not debouncer._tasks  # noqa: SLF001 - what no answer shows
    assert not debouncer._newest  # noqa: SLF001


async def test_a_save_that_cancels_itself_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(debounce, "QUIET_SECONDS", 0.001)
    saved: list[str] = []

    async def save(key: str, value: str) -> None:
        if value == "cancelled":  # such as by a library's own task
            debouncer.put(key, "meanwhile")
            raise asyncio.CancelledError
        saved.append(value)

    debouncer = debounce.Debouncer(save)
    debouncer.put("key", "cancelled")
    while debouncer._tasks:  # noqa: SLF001
        await asyncio.sleep(0)
    assert "'key' is not saved: cancelled" in caplog.text
    assert not debouncer._newest  # noqa: SLF001
    debouncer.put("key", "2")
    await debouncer.aclose()
    assert saved == ["2"]
