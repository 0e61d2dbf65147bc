"""concurrency/lock_per_key: no update is lost, and nobody waits forever."""

import asyncio
from contextlib import suppress
from typing import Any

import anyio
import httpx2
import pytest
from fastapi.testclient import TestClient

from recipes.concurrency import lock_per_key
from recipes.concurrency.lock_per_key import BusyError, Locks
from tests.conftest import Serve
from tests.harness.server import Server

GATED = "tests.behavior.concurrency.gated_lock_per_key"
RECIPE = "recipes.concurrency.lock_per_key"
NAIVE = "tests.behavior.concurrency.naive_lock_per_key"


def limited(serve: Serve, settings: str = "", **options: Any) -> Server:
    env = {"TARGET": RECIPE, "SETTINGS": settings}
    return serve(GATED, env=env, **options)


def adding(
    client: httpx2.AsyncClient, times: int = 1, name: str = "gated"
) -> list[asyncio.Task[httpx2.Response]]:
    path = f"/counters/{name}?add=1"
    return [asyncio.create_task(client.post(path)) for _ in range(times)]


async def in_turn(server: Server, client: httpx2.AsyncClient, times: int) -> list[Any]:
    """Requests for one key, the first of which holds its lock."""
    first = adding(client)
    await asyncio.to_thread(server.wait_for_log, "read gated.")
    return first + adding(client, times - 1)


def reads(server: Server, name: str = "gated") -> int:
    return server.log.count(f"read {name}.")


async def added_at_once(server: Server, reading: int) -> list[int]:
    """The results of ten additions, `reading` of which read before the first writes."""
    async with server.client() as client, server.client() as other:
        requests = adding(client, 10)
        while reads(server) < reading:
            await asyncio.gather(*adding(other, name="another"))  # it goes on
        for _ in range(20):  # so that all have arrived
            await asyncio.gather(*adding(other, name="another"))
        assert reads(server) == reading
        await other.post("/release")
        return sorted([(await request).json() for request in requests])


async def test_no_update_is_lost(serve: Serve) -> None:
    naive = serve(GATED, env={"TARGET": NAIVE}, strict=False)
    assert await added_at_once(naive, 10) == [1] * 10
    assert await added_at_once(limited(serve), 1) == [*range(1, 11)]


async def test_only_so_many_wait_and_for_the_others_nothing_is_done(
    serve: Serve,
) -> None:
    server = limited(serve, "MAX_WAITING=2")
    async with server.client() as client:
        requests = await in_turn(server, client, 10)
        while sum(request.done() for request in requests) < 7:
            await asyncio.gather(*adding(client, name="another"))
        await client.post("/release")
        responses = await asyncio.gather(*requests)
        found = sorted(r.json() for r in responses if r.status_code == 200)
        assert found == [1, 2, 3]  # who held it, and two who waited
        refused = [r for r in responses if r.status_code != 200]
        assert {r.status_code for r in refused} == {503}
        assert {r.headers["retry-after"] for r in refused} == {"1"}


async def test_who_waits_too_long_is_told_to_come_again(serve: Serve) -> None:
    server = limited(serve, "WAIT_SECONDS=0.2 HOLD_SECONDS=60")
    async with server.client() as client:
        first, *others = await in_turn(server, client, 4)
        for response in await asyncio.gather(*others):
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        await client.post("/release")
        assert (await first).json() == 1
        (again,) = await asyncio.gather(*adding(client))
        assert again.json() == 2


async def test_who_holds_it_too_long_or_fails_releases_it(serve: Serve) -> None:
    server = limited(serve, "HOLD_SECONDS=0.2 WAIT_SECONDS=60")
    close = {"Connection": "close"}  # as uvicorn does after a 500
    async with server.client(headers=close) as client:
        for response in await asyncio.gather(*adding(client, 3)):
            assert response.status_code == 504
        assert reads(server) == 3  # one after the other, all had it
        for response in await asyncio.gather(*adding(client, 3, "broken")):
            assert response.status_code == 500
        assert reads(server, "broken") == 3
        await client.post("/release")
        (response,) = await asyncio.gather(*adding(client))
        assert response.json() == 1


async def test_a_stop_ends_who_holds_and_who_waits(serve: Serve) -> None:
    server = limited(serve, timeout_graceful_shutdown=0)
    async with server.client() as client:
        requests = await in_turn(server, client, 5)
        server.terminate()
        await asyncio.gather(*requests, return_exceptions=True)
    assert await asyncio.to_thread(server.wait) == -15  # `serve` looks for tasks left


def test_what_is_no_counter_is_refused() -> None:
    with TestClient(lock_per_key.app) as client:
        for path in ("A?add=1", "a%0A?add=1", f"{'x' * 41}?add=1", "a", "a?add=1001"):
            assert client.post(f"/counters/{path}").status_code == 422


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Section:
    """Enters with the lock of a key, and stays until told to leave."""

    def __init__(self, locks: Locks) -> None:
        self.locks = locks
        self.inside: list[str] = []
        self.leave = asyncio.Event()

    async def enter(self, who: str, key: str = "key") -> None:
        async with self.locks.hold(key):
            self.inside.append(who)
            await self.leave.wait()


async def test_who_is_cancelled_takes_no_lock_along() -> None:
    """While it waits, at the moment when it gets the lock, and while it holds it."""
    for cancelled in ("waiting", "granted", "holding"):
        locks = Locks()
        section = Section(locks)
        first, second, third = (
            asyncio.create_task(section.enter(who)) for who in ("1", "2", "3")
        )
        await settle()
        assert section.inside == ["1"]
        if cancelled == "holding":
            first.cancel()
        else:
            if cancelled == "granted":
                section.leave.set()
                while not first.done():  # released, and the second is woken
                    await asyncio.sleep(0)
            assert section.inside == ["1"]
            second.cancel()
        await settle()
        section.leave.set()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert section.inside[-1] == "3", cancelled
        assert not locks._locks  # noqa: SLF001 - what no answer shows
        assert not locks._users  # noqa: SLF001


async def test_a_cancel_scope_releases_it_too() -> None:
    locks = Locks()
    for _ in range(2):
        with anyio.move_on_after(0.01):
            async with locks.hold("a"):
                with anyio.move_on_after(0.01):
                    async with locks.hold("b"), locks.hold("b"):
                        pass
                await anyio.sleep_forever()
    async with locks.hold("a"), locks.hold("b"):
        assert set(locks._locks) == {"a", "b"}  # noqa: SLF001
    assert not locks._locks  # noqa: SLF001


async def test_a_second_lock_is_given_up_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lock_per_key, "WAIT_SECONDS", 0.05)
    locks = Locks()
    with pytest.raises(BusyError):  # not reentrant
        async with locks.hold("a"), locks.hold("a"):
            pass

    async def both(*keys: str) -> None:
        async with locks.hold(keys[0]):
            await settle()
            async with locks.hold(keys[1]):
                pass

    crossed = await asyncio.gather(
        both("a", "b"), both("b", "a"), return_exceptions=True
    )
    assert any(isinstance(result, BusyError) for result in crossed)
    await asyncio.gather(both("a", "b"), both("a", "b"))  # in order
    assert not locks._locks  # noqa: SLF001


async def test_a_thread_goes_on_after_its_lock_is_released() -> None:
    """So that the gotcha stays true."""
    locks = Locks()
    loop = asyncio.get_running_loop()
    gate, written = asyncio.Event(), asyncio.Event()

    def write() -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(20)
        loop.call_soon_threadsafe(written.set)

    with suppress(TimeoutError):
        async with locks.hold("a"), asyncio.timeout(0.01):
            await asyncio.to_thread(write)
    async with locks.hold("a"):
        gate.set()
        await asyncio.wait_for(written.wait(), 20)  # beside the next holder
