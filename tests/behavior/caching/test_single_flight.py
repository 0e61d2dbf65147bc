"""caching/single_flight: one computation for all who ask, whatever its value or end."""

import asyncio
import gc
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from recipes.caching import single_flight
from recipes.caching.single_flight import Cache, UnavailableError
from tests.conftest import Serve
from tests.harness.server import Server

COUNTED = "tests.behavior.caching.counted_single_flight"
RECIPE = {"TARGET": "recipes.caching.single_flight"}
NAIVE = {"TARGET": "tests.behavior.caching.naive_single_flight"}
CALLERS = 100


@pytest.fixture
def recipe(serve: Serve) -> Server:
    return serve(COUNTED, env=RECIPE)


@pytest.fixture
def naive(serve: Serve) -> Server:
    return serve(COUNTED, env=NAIVE, strict=False)


def limited(serve: Serve, limits: str, **uvicorn: Any) -> Server:
    return serve(COUNTED, env=RECIPE | {"LIMITS": limits}, **uvicorn)


async def ask(
    client: httpx2.AsyncClient, city: str, callers: int = 1, prefix: str = ""
) -> list[httpx2.Response]:
    calls = (client.get(f"{prefix}/orders/{city}") for _ in range(callers))
    return await asyncio.gather(*calls)


async def counts(client: httpx2.AsyncClient, city: str) -> list[int]:
    """How many computations of `city` have started and finished."""
    found: list[int] = (await client.get(f"/counts/{city}")).json()
    return found


async def computing(server: Server, city: str) -> None:
    await asyncio.to_thread(server.wait_for_log, f"computing {city}\n")


async def asked_at_once(server: Server, enough: int) -> tuple[list[int], set[str]]:
    """Computations of one city, `enough` of which begin before the first ends."""
    async with server.client() as client, server.client() as other:
        await ask(client, "warm up", CALLERS)  # the connections are there
        asking = asyncio.create_task(ask(client, "gated", CALLERS))
        while (await counts(other, "gated"))[0] < enough:
            await asyncio.sleep(0.02)
        await other.post("/release")
        answers = await asking
        return await counts(client, "gated"), {answer.text for answer in answers}


@pytest.mark.defect("D99")
async def test_one_computation_for_a_hundred_callers(
    recipe: Server, naive: Server
) -> None:
    assert await asked_at_once(recipe, 1) == ([1, 1], {"5"})
    (started, _), values = await asked_at_once(naive, 2)
    assert started > 1
    assert values == {"5"}


async def asked_in_a_row(server: Server, city: str) -> list[int]:
    async with server.client() as client:
        for _ in range(3):
            assert [answer.text for answer in await ask(client, city)] == ["0"]
        return await counts(client, city)


@pytest.mark.defect("D98")
async def test_a_falsy_value_is_a_hit(recipe: Server, naive: Server) -> None:
    assert await asked_in_a_row(recipe, "atlantis") == [1, 1]
    assert await asked_in_a_row(naive, "atlantis") == [3, 3]


@pytest.mark.parametrize("value", [None, 0, "", False, [], {}])
async def test_every_falsy_value_is_a_hit(value: object) -> None:
    calls = []

    async def compute(key: str) -> object:
        calls.append(key)
        return value

    cache = Cache(compute)
    found = [await cache.get("key") for _ in range(3)]
    assert all(each is value for each in found)  # the same object for all
    assert calls == ["key"]


async def asked_again_after_five_others(server: Server) -> list[int]:
    async with server.client() as client:
        for city in ["first", *(f"city {n}" for n in range(5))]:
            await ask(client, city)
            await ask(client, "used")
        await ask(client, "first")
        assert await counts(client, "used") == [1, 1]
        assert await counts(client, "city 4") == [1, 1]
        return await counts(client, "first")


@pytest.mark.defect("D100")
async def test_the_values_least_used_are_forgotten(serve: Serve, naive: Server) -> None:
    recipe = limited(serve, "MAX_VALUES=5")
    assert await asked_again_after_five_others(recipe) == [2, 2]
    assert await asked_again_after_five_others(naive) == [1, 1]


async def asked_while_it_computes(server: Server, prefix: str = "") -> list[int]:
    async with server.client() as client:
        asking = asyncio.create_task(ask(client, "gated", prefix=prefix))
        await computing(server, "gated")
        meanwhile = await counts(client, "gated")
        await client.post("/release")
        await asking
        return meanwhile


@pytest.mark.defect("D101")
async def test_a_computation_holds_up_nobody_else(serve: Serve, recipe: Server) -> None:
    naive = serve(COUNTED, env=NAIVE | {"GATE": "0.3"}, strict=False)
    assert await asked_while_it_computes(recipe) == [1, 0]
    blocking = await asked_while_it_computes(naive, "/blocking")
    assert blocking == [1, 1]  # answered when it was over


async def test_an_error_reaches_all_who_wait_and_is_not_cached(
    recipe: Server, naive: Server
) -> None:
    """The error itself: a 404 is a 404 for all, and a bug is a 500."""
    close = {"Connection": "close"}  # as uvicorn does after a 500
    for city, status in (("gated missing", 404), ("gated broken", 500)):
        async with recipe.client(headers=close) as client:
            asking = asyncio.create_task(ask(client, city, 20))
            await computing(recipe, city)
            async with recipe.client(headers=close) as other:
                await counts(other, city)
                await other.post("/release")
            assert {answer.status_code for answer in await asking} == {status}
        async with recipe.client(headers=close) as client:
            times, _ = await counts(client, city)
            assert times < 20
            await ask(client, city)
            assert await counts(client, city) == [times + 1, 0]
    async with naive.client(headers=close) as client:
        await ask(client, "broken", 20)
        assert await counts(client, "broken") == [20, 0]


async def test_a_computation_that_hangs_is_given_up(serve: Serve) -> None:
    """But not its thread, which is what a driver's own timeout is for."""
    server = limited(serve, "COMPUTE_SECONDS=0.2 MAX_AT_ONCE=1")
    async with server.client() as client:
        for city in ("gated 1", "gated 2"):
            answers = await ask(client, city, 10)
            assert {answer.status_code for answer in answers} == {503}
            assert {answer.headers["retry-after"] for answer in answers} == {"1"}
            await computing(server, city)
        for city in ("gated 1", "gated 2"):
            assert (await counts(client, city))[1] == 0  # two threads, one slot
        assert "TimeoutError()" in server.log
        while (await ask(client, "berlin"))[0].text != "6":
            pass
        await client.post("/release")


async def test_only_so_many_compute_at_once_and_the_others_wait(serve: Serve) -> None:
    server = limited(serve, "MAX_AT_ONCE=2")
    async with server.client() as client:
        cities = [f"gated {n}" for n in range(10)]
        asking = [asyncio.create_task(ask(client, city)) for city in cities]
        started = 0
        while started < 2:
            started = sum([(await counts(client, city))[0] for city in cities])
        assert started == 2
        await client.post("/release")
        answers = [answer.status_code for (answer,) in await asyncio.gather(*asking)]
        assert answers == [200] * 10


async def test_too_many_keys_at_once_are_refused_and_joining_is_not(
    serve: Serve,
) -> None:
    server = limited(serve, "MAX_PENDING=1")
    async with server.client() as client:
        asking = asyncio.create_task(ask(client, "gated"))
        await computing(server, "gated")
        (refused,) = await ask(client, "berlin")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        joining = asyncio.create_task(ask(client, "gated", 10))
        await ask(client, "berlin")  # after them, on the same loop
        await client.post("/release")
        answers = await asking + await joining
        assert {answer.text for answer in answers} == {"5"}
        assert await counts(client, "gated") == [1, 1]
        assert (await ask(client, "berlin"))[0].text == "6"


async def test_a_value_is_computed_again_when_it_is_too_old(serve: Serve) -> None:
    server = limited(serve, "TTL_SECONDS=0.1")
    async with server.client() as client:
        while (await counts(client, "berlin"))[0] < 3:
            assert {answer.text for answer in await ask(client, "berlin", 10)} == {"6"}


async def test_a_client_that_leaves_does_not_stop_the_computation(
    recipe: Server,
) -> None:
    with socket.create_connection(("127.0.0.1", recipe.port)) as leaving:
        leaving.sendall(b"GET /orders/gated HTTP/1.1\r\nHost: x\r\n\r\n")
        await computing(recipe, "gated")
    async with recipe.client() as client:
        await client.post("/release")
        assert (await ask(client, "gated"))[0].text == "5"
        assert await counts(client, "gated") == [1, 1]


async def test_keys_are_limited_and_their_spellings_are_one(recipe: Server) -> None:
    async with recipe.client() as client:
        for name in ("berlin", "Berlin", "BERLIN", " berlin ", "%20berlin%09"):
            await ask(client, name)
        assert await counts(client, "berlin") == [1, 1]
        assert (await ask(client, "x" * 50))[0].status_code == 200
        assert (await ask(client, "x" * 51))[0].status_code == 422
        assert (await ask(client, "%00%0a'--"))[0].status_code == 200
        assert (await ask(client, "%ff%fe"))[0].status_code < 500


async def test_a_stop_cancels_what_is_still_computed(serve: Serve) -> None:
    env = RECIPE | {"GATE": "0.5"}
    server = serve(COUNTED, env=env, timeout_graceful_shutdown=0)
    async with server.client() as client:
        asking = [asyncio.create_task(ask(client, f"gated {n}")) for n in range(9)]
        await computing(server, "gated 0")
        server.terminate()
        await asyncio.gather(*asking, return_exceptions=True)
    assert await asyncio.to_thread(server.wait) == -15  # `serve` looks for tasks left


class Gated:
    """A computation that ends when the test says so."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.error: BaseException | None = None

    async def __call__(self, key: str) -> str:
        self.started += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        return key


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def first_leaves(
    first: Awaitable[str], second: Awaitable[str], gate: asyncio.Event
) -> list[str | BaseException]:
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    await settle()
    tasks[0].cancel()
    await settle()
    gate.set()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_caller_that_is_cancelled_takes_nobody_along() -> None:
    compute = Gated()
    cache = Cache(compute)
    left, stayed = await first_leaves(cache.get("a"), cache.get("a"), compute.gate)
    assert isinstance(left, asyncio.CancelledError)
    assert stayed == "a"
    assert (compute.started, compute.cancelled) == (1, 0)

    compute = Gated()  # what most people write: all await the task itself
    task = asyncio.create_task(compute("a"))

    async def shared() -> str:
        return await task

    left, stayed = await first_leaves(shared(), shared(), compute.gate)
    assert isinstance(left, asyncio.CancelledError)
    assert isinstance(stayed, asyncio.CancelledError)
    assert compute.cancelled == 1


async def test_when_all_have_left_the_value_is_kept() -> None:
    compute = Gated()
    cache = Cache(compute)
    callers = [asyncio.create_task(cache.get("a")) for _ in range(3)]
    await settle()
    for caller in callers:
        caller.cancel()
    await settle()
    compute.gate.set()
    await settle()
    assert await cache.get("a") == "a"
    assert compute.started == 1


async def test_when_all_have_left_an_error_is_told_and_not_cached() -> None:
    """By asyncio, which logs it."""
    told: list[str] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.append(context["message"]))
    compute = Gated()
    compute.error = ValueError("no")
    cache = Cache(compute)
    caller = asyncio.create_task(cache.get("a"))
    await settle()
    caller.cancel()
    compute.gate.set()
    await settle()
    del caller  # its error's traceback still knows the task
    gc.collect()
    loop.set_exception_handler(before)
    assert told == ["Task exception was never retrieved"]
    with pytest.raises(ValueError, match="no"):
        await cache.get("a")
    assert compute.started == 2


async def test_all_callers_get_the_error_itself_and_it_does_not_grow() -> None:
    compute = Gated()
    compute.error = ValueError("no")
    cache = Cache(compute)
    calls = [asyncio.create_task(cache.get("a")) for _ in range(50)]
    await settle()
    compute.gate.set()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(error is compute.error for error in errors)
    assert compute.started == 1
    assert len([*traceback.walk_tb(compute.error.__traceback__)]) < 10


async def test_a_cancelled_computation_does_not_look_like_a_cancelled_caller() -> None:
    compute = Gated()
    compute.error = asyncio.CancelledError()
    compute.gate.set()
    with pytest.raises(UnavailableError):
        await Cache(compute).get("a")


async def test_the_value_does_not_depend_on_who_asks_first() -> None:
    user = ContextVar("user", default="nobody")

    async def compute(_: str) -> str:
        return user.get()

    user.set("alice")
    assert await Cache(compute).get("a") == "nobody"
    assert await asyncio.create_task(compute("a")) == "alice"


def test_the_computation_outlives_the_dependencies_of_its_first_caller() -> None:
    compute = Gated()
    is_open = False

    async def get_session() -> AsyncIterator[None]:
        nonlocal is_open
        is_open = True
        yield
        is_open = False

    async def with_session(key: str) -> bool:
        await compute(key)
        return is_open

    app = FastAPI()
    cache = Cache(with_session)

    @app.get("/impatient", dependencies=[Depends(get_session)])
    async def impatient() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await cache.get("a")

    @app.get("/patient")
    async def patient() -> bool:
        compute.gate.set()
        return await cache.get("a")

    with TestClient(app) as client:
        client.get("/impatient")
        assert client.get("/patient").json() is False
    assert compute.started == 1


async def test_closing_cancels_and_awaits() -> None:
    compute = Gated()
    cache = Cache(compute)
    callers = [asyncio.create_task(cache.get(key)) for key in "aabc"]
    await settle()
    await cache.aclose()
    assert compute.cancelled == 3
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(answer) for answer in answers} == {UnavailableError}


async def test_a_value_that_needs_itself_fails_and_does_not_wait_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(single_flight, "COMPUTE_SECONDS", 0.1)

    async def compute(key: str) -> str:
        return await cache.get(key)

    cache: Cache[str, str] = Cache(compute)
    with pytest.raises(TimeoutError):
        await cache.get("a")


async def test_nothing_is_left_of_a_key_but_its_value() -> None:
    compute = Gated()
    compute.gate.set()
    cache = Cache(compute)
    await asyncio.gather(*(cache.get(str(n % 50)) for n in range(100)))
    assert cache._tasks == {}  # noqa: SLF001 - what no answer shows
    compute.error = ValueError("no")
    await asyncio.gather(*map(cache.get, "abc"), return_exceptions=True)
    assert cache._tasks == {}  # noqa: SLF001
    assert len(cache._values) == 50  # noqa: SLF001
