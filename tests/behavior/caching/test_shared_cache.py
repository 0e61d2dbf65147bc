"""caching/shared_cache: one computation for all workers, and no 500 without Valkey."""

import asyncio
import gc
import inspect
import os
import signal
import sys
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from cashews import Cache
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from recipes._cookbook.servers import valkey
from recipes.caching import shared_cache
from recipes.caching.shared_cache import NO_URL, PREFIX
from tests.conftest import Serve
from tests.harness.server import Server, run_script

COUNTED = "tests.behavior.caching.counted_shared_cache"
RECIPE = "recipes.caching.shared_cache"
NAIVE = "tests.behavior.caching.naive_shared_cache"
CLOSE = {"Connection": "close"}  # as uvicorn does after a 500


Servers = dict[str, Server]


def environment(url: str, target: str = RECIPE, limits: str = "") -> dict[str, str]:
    return {"TARGET": target, "LIMITS": limits, "REDIS_URL": url}


@pytest.fixture(scope="module")
def servers(redis_url: str, serve_for_file: Serve) -> Servers:
    """Two workers of the recipe and two of its naive form, on one Valkey server."""
    patient = "COMPUTE=50 LOCK=55"  # whatever the tests make them wait for

    def start(target: str) -> Server:
        env = environment(redis_url, target, patient) | {"STORE_URL": redis_url}
        return serve_for_file(COUNTED, env=env, strict=target == RECIPE)

    targets = {"one": RECIPE, "two": RECIPE, "naive one": NAIVE, "naive two": NAIVE}
    return {name: start(target) for name, target in targets.items()}


@pytest.fixture
def recipe(servers: Servers) -> list[Server]:
    return [servers["one"], servers["two"]]


@pytest.fixture
def naive(servers: Servers) -> list[Server]:
    return [servers["naive one"], servers["naive two"]]


@pytest.fixture
def city() -> str:
    return uuid4().hex


async def ask(server: Server, city: str, callers: int = 1) -> list[httpx2.Response]:
    async with server.client(headers=CLOSE) as client:
        calls = (client.get(f"/orders/{city}") for _ in range(callers))
        return await asyncio.gather(*calls)


async def release(server: Server, city: str) -> None:
    async with server.client() as client:
        response = await client.post(f"/release/{city}")
        assert response.is_success


async def counts(servers: list[Server], city: str) -> list[int]:
    """How often each of them has computed `city`."""
    found = []
    for server in servers:
        async with server.client() as client:
            found.append(int((await client.get(f"/counts/{city}")).json()))
    return found


async def computing(server: Server, city: str, what: str = "computing") -> None:
    await asyncio.to_thread(server.wait_for_log, f"{what} {city}\n")


async def asked_at_once(servers: list[Server], city: str, enough: int) -> list[int]:
    """Computations in each, `enough` of which begin before the first ends."""
    city = f"gated {city}"
    asking = [asyncio.create_task(ask(server, city, 20)) for server in servers]
    while sum(await counts(servers, city)) < enough:
        await asyncio.sleep(0.02)
    for server in servers:
        await release(server, city)
    for answers in await asyncio.gather(*asking):
        assert {answer.text for answer in answers} == {"0"}
    return await counts(servers, city)


async def asked_without_valkey(server: Server, city: str) -> list[int]:
    """Computations for callers that all have seen Valkey fail before the first ends."""
    city = f"gated {city}"
    enough = server.log.count("cache: ") + 20  # each asks Valkey once
    asking = asyncio.create_task(ask(server, city, 20))
    while server.log.count("cache: ") < enough:
        await asyncio.sleep(0.02)
    await release(server, city)
    assert {answer.text for answer in await asking} == {"0"}
    return await counts([server], city)


async def test_one_computation_for_the_callers_of_two_workers(
    recipe: list[Server], naive: list[Server], city: str
) -> None:
    assert sum(await asked_at_once(recipe, city, 1)) == 1
    assert await asked_at_once(naive, city, 40) == [20, 20]


async def test_a_falsy_value_is_a_hit_in_the_other_worker(
    recipe: list[Server], naive: list[Server], city: str
) -> None:
    async def three_times(servers: list[Server]) -> int:
        for server in (*servers, servers[0]):
            assert [answer.text for answer in await ask(server, city)] == ["0"]
        return sum(await counts(servers, city))

    assert await three_times(recipe) == 1
    assert await three_times(naive) == 3


@pytest.mark.parametrize("value", [None, 0, "", False, [], {}])
async def test_every_falsy_value_is_a_hit(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, city: str, value: object
) -> None:
    calls = []

    async def compute(key: str) -> object:
        calls.append(key)
        return value

    monkeypatch.setattr(shared_cache, "count_orders", compute)
    cache = shared_cache.SharedCache(Redis.from_url(redis_url))
    assert [await cache.get(city) for _ in range(3)] == [value] * 3
    assert calls == [city]
    await cache.aclose()


@pytest.mark.parametrize("garbage", ["{oops", b"\xff", ["a list"]])
async def test_garbage_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
    redis_url: str,
    city: str,
    garbage: str | bytes | list[str],
) -> None:
    async def compute(_: str) -> int:
        return 5

    monkeypatch.setattr(shared_cache, "count_orders", compute)
    redis = Redis.from_url(redis_url, decode_responses=True)
    cache = shared_cache.SharedCache(redis)
    name = f"{PREFIX}{city}:None"
    if isinstance(garbage, list):
        await redis.lpush(name, *garbage)
    else:
        await redis.set(name, garbage)
    assert [await cache.get(city) for _ in range(2)] == [5, 5]
    await cache.aclose()


async def test_an_error_reaches_all_who_wait_and_is_not_kept(
    recipe: list[Server], city: str
) -> None:
    server = recipe[0]
    city = f"gated broken {city}"
    asking = asyncio.create_task(ask(server, city, 20))
    await computing(server, city)
    await release(server, city)
    assert {answer.status_code for answer in await asking} == {500}
    assert await counts([server], city) == [1]
    await ask(server, city)
    assert await counts([server], city) == [2]


async def test_a_write_is_seen_also_if_it_comes_during_a_computation(
    recipe: list[Server], city: str
) -> None:
    """Which has read the old value and stores it later; the write does not wait."""
    one, two = recipe
    city = f"gated {city}"
    early = asyncio.create_task(ask(one, city))
    await computing(one, city)
    async with two.client() as client:
        assert (await client.put(f"/orders/{city}?count=5")).is_success
    late = asyncio.create_task(ask(one, city))
    while await counts([one], city) != [2]:
        await asyncio.sleep(0.02)
    assert not early.done()
    await release(one, city)
    assert [answer.text for answer in await early] == ["0"]
    assert [answer.text for answer in await late] == ["5"]
    for server in two, one:
        assert [answer.text for answer in await ask(server, city)] == ["5"]
    assert await counts(recipe, city) == [2, 0]


async def test_what_a_worker_stores_after_a_write_is_not_served(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, city: str
) -> None:
    """Also if its lock has ended meanwhile: it was stopped, or cut off from Valkey."""
    gate = asyncio.Event()
    rows = ["old"]

    async def compute(_: str) -> str:
        row = rows[0]
        await gate.wait()
        return row

    monkeypatch.setattr(shared_cache, "count_orders", compute)
    redis = [Redis.from_url(redis_url, decode_responses=True) for _ in "12"]
    late, other = map(shared_cache.SharedCache, redis)
    asking = asyncio.create_task(late.get(city))
    while not (locks := await redis[1].keys(f"{PREFIX}{city}*lock")):
        await asyncio.sleep(0.02)
    await redis[1].delete(*locks)
    rows[0] = "new"
    await other.forget(city)
    gate.set()
    assert await asking == "old"
    assert [await cache.get(city) for cache in (late, other)] == ["new", "new"]
    assert await redis[1].ttl(f"{PREFIX}{city}:version") > 10 * shared_cache.TTL
    await late.aclose()
    await other.aclose()


@pytest.mark.usefixtures("leaky")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_caller_that_is_cancelled_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, city: str
) -> None:
    """As it would with cashews."""
    gate = asyncio.Event()
    computing = asyncio.Event()

    async def compute(_: str) -> int:
        computing.set()
        await gate.wait()
        return 5

    monkeypatch.setattr(shared_cache, "count_orders", compute)
    ours = shared_cache.SharedCache(Redis.from_url(redis_url))
    theirs = Cache()
    theirs.setup(redis_url)
    cached = theirs(ttl=60, key="cashews:{key}")(compute_with_name(compute))
    for get, expected in (ours.get, 5), (cached, None):
        gate.clear()
        computing.clear()
        first = asyncio.ensure_future(get(city))
        await computing.wait()
        second = asyncio.ensure_future(get(city))
        await asyncio.sleep(0.05)  # cashews waits for the first before it asks Valkey
        first.cancel()
        await asyncio.wait([first])
        gate.set()
        await asyncio.wait([second])
        assert first.cancelled()
        assert second.cancelled() == (expected is None)
        if expected:
            assert second.result() == expected
    await ours.aclose()
    await closed(theirs)


async def closed(*caches: Cache) -> None:
    """cashews 7.6 uses what redis-py deprecates, and leaves connections open."""
    with warnings.catch_warnings(action="ignore"):
        for cache in caches:
            await cache.close()


@pytest.fixture
def leaky() -> Iterator[None]:
    yield
    gc.collect()


def compute_with_name(compute: Any) -> Any:
    async def named(key: str) -> Any:
        return await compute(key)

    return named


@pytest.mark.usefixtures("leaky")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_what_the_lock_of_cashews_costs(redis_url: str, city: str) -> None:
    """It is taken for each hit, and waited for in a busy loop."""
    caches = [Cache(), Cache()]
    redis = Redis.from_url(redis_url)

    async def compute(key: str) -> str:
        await asyncio.sleep(0.1)
        return key

    async def commands(name: str) -> int:
        found = await redis.info("commandstats")
        return int(found.get(f"cmdstat_{name}", {"calls": 0})["calls"])

    workers: list[Any] = []
    for cache in caches:
        cache.setup(redis_url)
        workers.append(cache(ttl=60, key="cashews:{key}", lock=True)(compute))
    await workers[0](key=city)
    before = await commands("set")
    for _ in range(10):
        await workers[0](key=city)
    assert await commands("set") - before == 10  # the lock, ten times
    before = await commands("set")
    await asyncio.gather(*(each(key=f"{city}-2") for each in workers))
    assert await commands("set") - before > 20  # in 0.1 s
    assert str(await redis.get(f"cashews:{city}")).startswith("b'\\x80")  # a pickle
    await redis.aclose()
    await closed(*caches)


@pytest.fixture
def own_valkey() -> Iterator[str]:
    with valkey() as url:
        yield url


async def test_without_valkey_a_worker_computes_once_for_its_callers(
    serve: Serve, city: str
) -> None:
    down = "redis://127.0.0.1:1/0"
    recipe = serve(COUNTED, env=environment(down))
    assert await asked_without_valkey(recipe, city) == [1]
    assert "cache: Error 111" in recipe.log
    naive = serve(COUNTED, env=environment(down, NAIVE), strict=False)
    assert [answer.status_code for answer in await ask(naive, city)] == [500]


async def test_a_valkey_that_hangs_or_restarts_is_no_error(
    serve: Serve, own_valkey: str, city: str
) -> None:
    server = serve(COUNTED, env=environment(own_valkey, limits="WAIT=0.1"))
    assert [answer.text for answer in await ask(server, f"{city}-1")] == ["0"]
    redis = Redis.from_url(own_valkey, retry=None)
    pid = (await redis.info("server"))["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert await asked_without_valkey(server, city) == [1]
    finally:
        os.kill(pid, signal.SIGCONT)
    await redis.client_kill_filter(_type="normal", skipme=True)  # as a restart does
    for _ in range(3):
        assert [answer.text for answer in await ask(server, f"{city}-3")] == ["0"]
    assert await counts([server], f"{city}-3") == [1]
    await redis.aclose()


@asynccontextmanager
async def hanging() -> AsyncIterator[tuple[str, list[int]]]:
    """A URL that accepts and never answers, and the number of each connection."""
    accepted: list[int] = []

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        accepted.append(len(accepted))
        while await reader.read(1000):
            pass
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", accepted


async def test_a_valkey_that_hangs_is_asked_once_for_each_request(
    monkeypatch: pytest.MonkeyPatch, city: str
) -> None:
    """Each question ends its connection; `Redis(host=...)` would ask eleven times."""
    monkeypatch.setattr(shared_cache, "WAIT", 0.1)
    async with hanging() as (url, accepted):
        monkeypatch.setenv("REDIS_URL", url)
        async with shared_cache.lifespan(shared_cache.app) as state:
            await state["cache"].get(city)
        assert accepted == [0]
    retry = Redis(host="127.0.0.1").get_retry()
    assert retry
    assert retry.get_retries() == 10
    pool: Any = BlockingConnectionPool.from_url(url)
    assert pool.make_connection().retry.get_retries() == 0


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a new asyncio.wait_for")
async def test_redis_py_may_lose_a_cancellation() -> None:
    """One that comes in the turn of the event loop in which the command was sent."""
    assert "wait_for(" in inspect.getsource(Connection.send_packed_command)
    sent = asyncio.get_running_loop().create_future()
    sending = asyncio.create_task(asyncio.wait_for(sent, 10))
    await asyncio.sleep(0)
    sent.set_result(None)
    sending.cancel()
    await asyncio.wait([sending])
    assert not sending.cancelled()


async def test_the_limit_of_a_computation_holds_also_if_redis_py_loses_cancellations(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, city: str
) -> None:
    class Deaf(Redis):
        async def execute_command(self, *args: Any, **options: Any) -> Any:
            slow = asyncio.create_task(asyncio.sleep(4 * shared_cache.COMPUTE))
            while not slow.done():
                try:
                    await asyncio.shield(slow)
                except asyncio.CancelledError:
                    continue
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    gate = asyncio.Event()

    async def compute(_: str) -> None:
        await gate.wait()

    monkeypatch.setattr(shared_cache, "count_orders", compute)
    monkeypatch.setattr(shared_cache, "COMPUTE", 0.02)
    cache = shared_cache.SharedCache(Deaf.from_url(redis_url))
    asking = asyncio.create_task(cache.get(city))
    done, _ = await asyncio.wait([asking], timeout=10)  # without the limit: for ever
    gate.set()
    await asyncio.wait([asking])
    assert done
    assert isinstance(asking.exception(), TimeoutError)
    await cache.aclose()


async def test_a_miss_that_arrives_after_the_computation_starts_no_other(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, city: str
) -> None:
    late = asyncio.Event()
    missed = asyncio.Event()
    calls = []

    class Late(Redis):
        async def get(self, name: Any) -> Any:
            answer = await super().get(name)
            if not missed.is_set() and "version" not in name:
                missed.set()
                await late.wait()
            return answer

    async def compute(key: str) -> int:
        calls.append(key)
        return 5

    monkeypatch.setattr(shared_cache, "count_orders", compute)
    cache = shared_cache.SharedCache(Late.from_url(redis_url))
    asking = asyncio.create_task(cache.get(city))
    await missed.wait()
    assert await cache.get(city) == 5
    late.set()
    assert await asking == 5
    assert calls == [city]
    await cache.aclose()


async def test_without_its_version_no_value_is_served(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, city: str
) -> None:
    """If Valkey fails for a moment, what it has may be older than a write."""
    rows = ["old"]

    class Failing(Redis):
        async def get(self, name: Any) -> Any:
            if "version" in name:
                raise RedisConnectionError("no answer")
            return await super().get(name)

    async def compute(_: str) -> str:
        return rows[0]

    monkeypatch.setattr(shared_cache, "count_orders", compute)
    cache = shared_cache.SharedCache(Failing.from_url(redis_url))
    assert await cache.get(city) == "old"
    rows[0] = "new"
    await cache.forget(city)
    assert await cache.get(city) == "new"
    await cache.aclose()


async def test_the_age_of_a_value_counts_from_before_its_computation(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, city: str
) -> None:
    begun = []

    async def compute(_: str) -> int:
        begun.append(time.time())
        await asyncio.sleep(0.05)
        return 5

    monkeypatch.setattr(shared_cache, "count_orders", compute)
    redis = Redis.from_url(redis_url, decode_responses=True)
    cache = shared_cache.SharedCache(redis)
    assert await cache.get(city) == 5
    (name,) = await redis.keys(f"{PREFIX}{city}*")
    expires = await redis.pexpiretime(str(name)) / 1000
    assert begun[0] < expires <= begun[0] + shared_cache.TTL
    await cache.aclose()


async def test_what_a_stalled_valkey_stores_too_late_is_not_served(
    monkeypatch: pytest.MonkeyPatch, own_valkey: str, city: str
) -> None:
    """The command waits in the socket; a TTL would begin when Valkey goes on."""
    calls = []
    redis = Redis.from_url(own_valkey)
    pid = (await redis.info("server"))["process_id"]

    async def compute(key: str) -> int:
        calls.append(key)
        if len(calls) == 1:
            os.kill(pid, signal.SIGSTOP)
        return len(calls)

    monkeypatch.setattr(shared_cache, "count_orders", compute)
    monkeypatch.setattr(shared_cache, "TTL", 0.3)
    monkeypatch.setattr(shared_cache, "WAIT", 0.2)
    monkeypatch.setattr(shared_cache, "LOCK", 0.2)
    monkeypatch.setenv("REDIS_URL", own_valkey)

    async def sets() -> int:
        found = await redis.info("commandstats")
        return int(found["cmdstat_set"]["calls"])

    async with shared_cache.lifespan(shared_cache.app) as state:
        try:
            assert await state["cache"].get(city) == 1
            await asyncio.sleep(0.3)  # the TTL
        finally:
            os.kill(pid, signal.SIGCONT)
        while await sets() < 2:  # the lock, and then the value
            await asyncio.sleep(0.01)
        assert await state["cache"].get(city) == 2
    await redis.aclose()


async def test_a_worker_that_crashes_frees_its_lock(
    serve: Serve, recipe: list[Server], redis_url: str, city: str
) -> None:
    """And one of those that wait for it computes, for all."""
    crashes = serve(COUNTED, env=environment(redis_url, limits="LOCK=0.5"))
    city = f"gated {city}"
    asking = asyncio.create_task(ask(crashes, city))
    await computing(crashes, city)
    crashes.kill()
    with pytest.raises(httpx2.RemoteProtocolError):
        await asking
    assert sum(await asked_at_once(recipe, city.removeprefix("gated "), 1)) == 1


async def test_others_neither_compute_with_a_worker_that_is_stopped_nor_wait_for_it(
    serve: Serve, recipe: list[Server], redis_url: str, city: str
) -> None:
    limits = "COMPUTE=0.3 LOCK=0.3"
    hasty = serve(COUNTED, env=environment(redis_url, limits=limits))
    city = f"gated {city}"
    asking = asyncio.create_task(ask(recipe[0], city))
    await computing(recipe[0], city)
    recipe[0].signal(signal.SIGSTOP)
    try:
        answers = await ask(hasty, city, 10)
        assert {answer.status_code for answer in answers} == {503}
        assert await counts([hasty], city) == [0]
    finally:
        recipe[0].signal(signal.SIGCONT)
    await release(recipe[0], city)
    assert [answer.text for answer in await asking] == ["0"]
    assert [answer.text for answer in await ask(hasty, city)] == ["0"]
    for _ in range(2):  # and a computation of its own that hangs is given up
        answers = await ask(hasty, f"{city} 2", 10)
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.headers["retry-after"] for answer in answers} == {"1"}
    assert await counts([hasty], f"{city} 2") == [2]


async def test_only_so_many_compute_at_once(recipe: list[Server], city: str) -> None:
    server = recipe[0]
    cities = [f"gated {number} {city}" for number in range(15)]
    asking = [asyncio.create_task(ask(server, each)) for each in cities]
    while server.log.count(f"{city}\n") < shared_cache.MAX_AT_ONCE:
        await asyncio.sleep(0.02)
    await counts([server], city)  # the others would have begun meanwhile, too
    assert server.log.count(f"{city}\n") == shared_cache.MAX_AT_ONCE
    await release(server, city)
    await asyncio.gather(*asking)


async def test_values_are_json_and_expire(
    recipe: list[Server], redis_url: str, city: str
) -> None:
    await ask(recipe[0], city)
    redis = Redis.from_url(redis_url)
    (name,) = await redis.keys(f"{PREFIX}{city}*")  # no lock is left
    assert await redis.get(name) == b"0"
    assert 0 < await redis.ttl(name) <= shared_cache.TTL
    await redis.aclose()


async def test_long_names_and_odd_ones(recipe: list[Server], city: str) -> None:
    server = recipe[0]
    for name, status in ("x" * 51, 422), (f"{city[:20]}%00%0A{{key}}*", 200):
        assert {answer.status_code for answer in await ask(server, name)} == {status}
    await ask(server, f"A{city}")
    await ask(server, f"a{city}")
    assert await counts([server], f"a{city}") == [1]


async def test_a_stop_waits_for_what_is_computed(
    serve: Serve, redis_url: str, city: str
) -> None:
    server = serve(COUNTED, env=environment(redis_url))
    asking = asyncio.create_task(ask(server, f"gated {city}"))
    await computing(server, f"gated {city}")
    await release(server, city)
    server.terminate()
    assert await asyncio.to_thread(server.wait) == -15
    assert [answer.text for answer in await asking] == ["0"]


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"REDIS_URL": ""}
    path = Path(shared_cache.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve(RECIPE, env=no_url)
