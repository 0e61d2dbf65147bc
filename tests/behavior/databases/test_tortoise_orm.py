"""databases/tortoise_orm: it starts, sells a seat once, and answers when it is full."""

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tortoise import Tortoise, connections
from tortoise.backends.asyncpg.client import TransactionWrapper
from tortoise.contrib.fastapi import RegisterTortoise
from tortoise.exceptions import ConfigurationError
from tortoise.transactions import in_transaction

from recipes.databases import tortoise_orm
from recipes.databases.tortoise_orm import NO_URL, Concert
from tests.behavior.databases.postgres import (
    OTHERS,
    Proxy,
    database,
    disconnect_others,
    execute,
    shared_servers,
    until,
)
from tests.conftest import Serve
from tests.harness.server import Server, run_script

RECIPE = "recipes.databases.tortoise_orm"
SMALL = "tests.behavior.databases.small_tortoise_orm"
NAIVE = "tests.behavior.databases.naive_tortoise_orm"
WAITING = f"SELECT count(*) {OTHERS} AND wait_event_type = 'Lock'"
FRESH = """
    TRUNCATE concert, concertticket;
    INSERT INTO concert VALUES (1, 10000), (2, 3)
"""
ADA = {"email": "ada@example.com"}


@pytest.fixture(scope="module")
def shared(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("tortoise_orm")
    targets = SMALL, f"{NAIVE}_unlocked"
    with shared_servers(postgres_url, folder, "SELECT", *targets) as servers:
        yield servers


def fresh(server: Server) -> Server:
    """`server` with two concerts and no ticket."""
    asyncio.run(execute(server.options.env["DATABASE_URL"], FRESH))
    return server


@pytest.fixture
def small(shared: list[Server]) -> Server:
    return fresh(shared[0])


@pytest.fixture
def unlocked(shared: list[Server]) -> Server:
    return fresh(shared[1])


def alone(server: Server) -> httpx2.AsyncClient:
    """A client with a connection for each request: uvicorn closes it after a 500."""
    return server.client(headers={"Connection": "close"}, timeout=60)


async def buy(client: httpx2.AsyncClient, email: str) -> int:
    new = {"email": email}
    return (await client.post("/concerts/2/tickets", json=new)).status_code


async def read(client: httpx2.AsyncClient, number: object = 1) -> int:
    return (await client.get(f"/concerts/{number}")).status_code


@pytest.mark.defect("D21", "D22")
def test_it_starts_without_a_warning(
    serve: Serve, new_database: Callable[[], str]
) -> None:
    """`strict` makes a warning an error. Two workers start at once."""
    env = {"DATABASE_URL": new_database()}
    with ThreadPoolExecutor() as threads:
        for server in threads.map(lambda _: serve(RECIPE, env=env), "12"):
            answer = httpx2.get(f"{server.url}/concerts/1")
            assert answer.json() == {"seats": 10_000}
    with pytest.raises(RuntimeError, match=r'Module "app\.models" not found'):
        serve(NAIVE, env=env, strict=False)
    with pytest.raises(RuntimeError, match=r"pk.* is deprecated"):
        serve(NAIVE, env=env, strict=True)


async def test_a_seat_is_sold_once_or_not_at_all(
    small: Server, unlocked: Server
) -> None:
    async def heard(server: Server) -> tuple[list[int], int, list[int]]:
        """Ada buys twice; how many seats are left; two buy the last one."""
        async with (
            database(server) as connection,
            database(server) as other,
            alone(server) as client,
        ):
            statuses = [await buy(client, "ada@example.com") for _ in "12"]
            left = await connection.fetchval("SELECT seats FROM concert WHERE id = 2")
            await connection.execute("UPDATE concert SET seats = 1 WHERE id = 2")
            async with other.transaction():
                await other.execute("LOCK TABLE concert IN SHARE MODE")
                names = "bob@example.com", "cy@example.com"
                tasks = [asyncio.create_task(buy(client, name)) for name in names]
                await until(connection, WAITING, 2)
            return statuses, left, sorted(await asyncio.gather(*tasks))

    ours, theirs = await asyncio.gather(heard(small), heard(unlocked))
    assert ours == ([201, 409], 2, [201, 409])
    assert theirs == ([201, 500], 1, [201, 201])


async def test_a_request_without_a_connection_waits_but_not_forever(
    small: Server, serve: Serve
) -> None:
    env = small.options.env | {"POOL_TIMEOUT": "0.2"}
    impatient = await asyncio.to_thread(lambda: serve(SMALL, env=env))
    async with alone(small) as client:
        answers = await asyncio.gather(*(read(client) for _ in range(100)))
        assert Counter(answers) == {200: 100}
    async with database(small) as connection, alone(impatient) as client:
        async with connection.transaction(), database(small) as other:
            await connection.execute("LOCK TABLE concert")
            tasks = [asyncio.create_task(read(client)) for _ in "12"]
            await until(other, WAITING, 2)
            late = await client.get("/concerts/1")
            assert (late.status_code, late.headers["retry-after"]) == (503, "2")
        assert await asyncio.gather(*tasks) == [200, 200]


async def test_a_database_that_restarts_or_is_gone(
    serve: Serve, new_database: Callable[[], str]
) -> None:
    async with Proxy(await asyncio.to_thread(new_database)) as proxy:
        env = {"DATABASE_URL": proxy.url}
        server = await asyncio.to_thread(lambda: serve(SMALL, env=env))
        async with alone(server) as client:
            async with database(server) as connection:
                await disconnect_others(connection)
            assert await read(client) in {200, 503}  # the app may not know it yet
            assert await read(client) == 200
            await proxy.cut()
            assert [await read(client) for _ in "123"] == [503] * 3
            await proxy.open(proxy.port)
            assert [await read(client) for _ in "123"] == [200] * 3
        await asyncio.to_thread(server.stop)


async def test_a_wrong_argument_is_not_the_fault_of_the_database(small: Server) -> None:
    async with alone(small) as client:
        assert (await client.get("/wrong")).status_code == 500
        assert await read(client) == 200


async def test_a_begin_that_is_stopped_costs_a_connection_so_the_recipe_waits(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def begin(seconds: float | None = None) -> None:
        async with asyncio.timeout(seconds), in_transaction():
            pass

    async def hanging(
        proxy: Proxy, seconds: float | None = None, **limits: float
    ) -> bool:
        """Whether a pool of one has its connection back when the database answers."""

        limits |= {"maxsize": 1}
        monkeypatch.setattr(tortoise_orm, "LIMITS", tortoise_orm.LIMITS | limits)
        async with tortoise_orm.lifespan(FastAPI()):
            await asyncio.create_task(begin())
            proxy.freeze()
            stopped = asyncio.create_task(begin(seconds))
            await asyncio.wait([stopped], timeout=0.5)
            proxy.thaw()
            await asyncio.wait([stopped])
            assert isinstance(stopped.exception(), TimeoutError | None)
            pool = Tortoise.get_connection("default")._pool  # noqa: SLF001
            if pool.get_idle_size() == 0:
                [lost] = pool._holders  # noqa: SLF001
                await lost.release(5)  # or the stop would take 10 s
                return False
            return True

    async with Proxy(await asyncio.to_thread(new_database)) as proxy:
        monkeypatch.setenv("DATABASE_URL", proxy.url)
        assert await asyncio.create_task(hanging(proxy)) is True
        assert await asyncio.create_task(hanging(proxy, 0.3)) is False
        assert await asyncio.create_task(hanging(proxy, command_timeout=0.3)) is False


async def test_the_server_stops_a_statement_that_takes_too_long(
    small: Server, serve: Serve
) -> None:
    env = small.options.env | {"STATEMENT_TIMEOUT": "100ms"}
    server = await asyncio.to_thread(lambda: serve(SMALL, env=env))
    async with database(server) as connection, alone(server) as client:
        async with connection.transaction():
            await connection.execute("LOCK TABLE concert")
            assert [await read(client) for _ in "123"] == [503] * 3
        assert await read(client) == 200


def test_it_starts_again_in_one_process_but_only_one_at_a_time(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database()
    monkeypatch.setenv("DATABASE_URL", url)
    for _ in "12":
        with TestClient(tortoise_orm.app) as client:
            assert client.get("/concerts/1").status_code == 200

    async def start_another() -> None:
        name = tortoise_orm.__name__
        async with RegisterTortoise(db_url=url, modules={"models": [name]}):
            pass

    message = "Global context fallback is already enabled by another Tortoise.init"
    with TestClient(tortoise_orm.app) as client:
        with pytest.raises(ConfigurationError, match=message):
            contextvars.Context().run(asyncio.run, start_another())
        assert client.get("/concerts/1").status_code == 200

    async def query() -> None:
        await Concert.get_or_none(id=1)

    with pytest.raises(RuntimeError, match="No TortoiseContext is currently active"):
        contextvars.Context().run(asyncio.run, query())


def test_bad_input_is_refused(small: Server) -> None:
    with httpx2.Client(base_url=small.url) as client:
        for number in (0, -1, 2**31, 2**63, "x", "1.5", "%00"):
            assert client.get(f"/concerts/{number}").status_code == 422
        assert client.get(f"/concerts/{2**31 - 1}").status_code == 404
        for email in (None, 1, "", "ada", "a\0@b.example", f"{'x' * 300}@example.com"):
            answer = client.post("/concerts/1/tickets", json={"email": email})
            assert answer.status_code == 422
        assert client.post("/concerts/999/tickets", json=ADA).status_code == 409


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(tortoise_orm.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve(RECIPE, env=no_url)


async def lost(_: object) -> None:
    raise asyncpg.InternalClientError("cannot switch to state 15")


def test_a_connection_that_dies_at_begin_is_a_503_and_lost(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", new_database())
    with TestClient(tortoise_orm.app) as client:
        assert client.get("/concerts/1").status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(TransactionWrapper, "begin", lost)
            assert client.get("/concerts/1").status_code == 503
        pool = connections.get("default")._pool  # noqa: SLF001 - to see its bug
        assert (pool.get_size(), pool.get_idle_size()) == (1, 0)
        pool.terminate()  # else the stop waits for the lost one
