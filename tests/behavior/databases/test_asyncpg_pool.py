"""databases/asyncpg_pool: one pool, and a connection only for as long as it works."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx2
import pytest
from fastapi.testclient import TestClient

from recipes.databases import asyncpg_pool
from recipes.databases.asyncpg_pool import NO_URL, PAGE_SIZE, POOL_SIZE, SCHEMA
from tests.behavior.databases import naive_asyncpg_pool
from tests.behavior.databases.postgres import (
    WAITING,
    Proxy,
    database,
    disconnect_others,
    execute,
    shared_servers,
    statuses_while_connections_die,
    until,
)
from tests.conftest import Serve
from tests.harness.server import Server, run_script

FOLDER = "tests.behavior.databases"
RECIPE, NAIVE = "stalling_asyncpg_pool:recipe", "stalling_asyncpg_pool:naive"
PER_REQUEST, SESSION = "naive_asyncpg_pool_per_request", "naive_asyncpg_pool_session"
OPENED = """
    SELECT {} FROM pg_stat_database WHERE datname = current_database()
"""
Start = Callable[..., Awaitable[Server]]


@pytest.fixture(scope="module")
def servers(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    """Recipe and naive forms, each with a database of its own, for most tests."""
    folder = tmp_path_factory.mktemp("asyncpg_pool")
    targets = [f"{FOLDER}.{name}" for name in (RECIPE, NAIVE, SESSION)]
    with shared_servers(postgres_url, folder, SCHEMA, *targets) as servers:
        yield servers


@pytest.fixture
def recipe(servers: list[Server]) -> Server:
    return fresh(servers[0])


@pytest.fixture
def naive(servers: list[Server]) -> Server:
    return fresh(servers[1])


@pytest.fixture
def session(servers: list[Server]) -> Server:
    return fresh(servers[2])


def fresh(server: Server) -> Server:
    """`server` with empty tables."""
    empty = "TRUNCATE readers, reader_emails RESTART IDENTITY"
    asyncio.run(execute(server.options.env["DATABASE_URL"], empty))
    return server


@pytest.fixture
def start(serve: Serve, new_database: Callable[[], str]) -> Start:
    """Serves a module of this folder on its own, with tables in its database."""

    def start(name: str, url: str = "", seconds: float = 30) -> Server:
        env = {"DATABASE_URL": url or new_database()}
        env["COMMAND_TIMEOUT"] = str(seconds)
        asyncio.run(execute(env["DATABASE_URL"], SCHEMA))
        return serve(f"{FOLDER}.{name}", env=env, strict="naive" not in name)

    async def in_thread(*options: Any) -> Server:
        return await asyncio.to_thread(start, *options)

    return in_thread


def alone(server: Server) -> httpx2.AsyncClient:
    """A client with a connection for each request: uvicorn closes it after a 500."""
    headers = {"Connection": "close"}
    return server.client(headers=headers, verify=False)  # no TLS


async def add(client: httpx2.AsyncClient, email: str = "ada@example.com") -> int:
    new = {"name": "Ada", "email": email}
    return (await client.post("/readers", json=new)).status_code


async def read(client: httpx2.AsyncClient) -> int:
    return (await client.get("/readers")).status_code


@pytest.mark.defect("D12", "D13")
async def test_requests_share_connections(start: Start) -> None:
    """Two requests, one after the other."""
    recipe = await start(RECIPE)
    naive = await start(PER_REQUEST, recipe.options.env["DATABASE_URL"])

    async def opened(server: Server, at_least: int) -> int:
        async with database(server) as connection, alone(server) as client:
            before: int = await connection.fetchval(OPENED.format("sessions"))
            assert [await read(client) for _ in range(2)] == [200] * 2
            await asyncio.to_thread(server.stop)
            enough = OPENED.format(f"(sessions >= {before + at_least})::int")
            await until(connection, enough)
            after: int = await connection.fetchval(OPENED.format("sessions"))
            return after - before

    assert await opened(recipe, 0) <= 2  # one, and the test's own
    assert await opened(naive, 20) >= 20


@pytest.mark.defect("D14")
async def test_many_requests_do_not_exhaust_the_server(
    start: Start, new_database: Callable[[], str]
) -> None:
    """25 at once, with a server that lets this user have 20 connections."""
    url = await asyncio.to_thread(new_database)
    user = f"user_{uuid4().hex}"
    await execute(
        url,
        f"{SCHEMA}; CREATE ROLE {user} LOGIN CONNECTION LIMIT 20;"
        f"GRANT ALL ON SCHEMA public TO {user}; GRANT SELECT ON readers TO {user}",
    )

    async def statuses(target: str) -> Counter[int]:
        server = await start(target, url.replace("postgres@", f"{user}@"))
        async with alone(server) as client:
            found = await asyncio.gather(*(read(client) for _ in range(25)))
        await asyncio.to_thread(server.stop)
        return Counter(found)

    try:
        assert await statuses(RECIPE) == {200: 25}
        assert (await statuses(PER_REQUEST))[500] > 0
    finally:
        await execute(url, f"DROP OWNED BY {user}; DROP ROLE {user}")


@pytest.mark.defect("D85", "D86", "D87")
async def test_a_block_that_fails_is_rolled_back_and_its_error_is_seen(
    recipe: Server, session: Server
) -> None:
    async def failing(server: Server) -> tuple[list[int], int, str]:
        """Its second statement fails; then a table is gone."""
        async with database(server) as connection, alone(server) as client:
            twice = [await add(client) for _ in range(2)]
            rows = await connection.fetchval("SELECT count(*) FROM readers")
            await connection.execute("ALTER TABLE readers RENAME TO gone")
            assert await read(client) == 500
            await connection.execute("ALTER TABLE gone RENAME TO readers")
        await asyncio.to_thread(server.wait_for_log, "Error: ")
        errors = [line for line in server.log.splitlines() if "Error: " in line]
        return twice, rows, errors[-1].partition(":")[0]

    undefined_table = "asyncpg.exceptions.UndefinedTableError"
    assert await failing(recipe) == ([201, 409], 1, undefined_table)
    assert await failing(session) == ([200, 500], 2, "AttributeError")


async def test_a_mistake_in_a_query_is_a_500(recipe: Server) -> None:
    """It is an InterfaceError too, as a lost connection is."""
    async with alone(recipe) as client:
        assert (await client.get("/mistake")).status_code == 500
    mistake = "the server expects 1 argument for this query, 0 were passed"
    await asyncio.to_thread(recipe.wait_for_log, mistake)


@pytest.mark.defect("D15", "D88", "D93")
async def test_a_response_has_named_columns_and_a_bounded_number_of_rows(
    recipe: Server, naive: Server
) -> None:
    async def rows(server: Server) -> list[dict[str, Any]]:
        async with database(server) as connection, alone(server) as client:
            await connection.execute(
                "INSERT INTO readers (name, password_hash) "
                "SELECT n, 'secret' FROM generate_series(1, 250) AS n"
            )
            return list((await client.get("/readers")).json())

    ours, theirs = await rows(recipe), await rows(naive)
    assert (len(ours), set(ours[0])) == (PAGE_SIZE, {"id", "name"})
    assert (len(theirs), set(theirs[0])) == (250, {"id", "name", "password_hash"})

    async with alone(recipe) as client, alone(naive) as careless:
        pages, after = [], 0
        while page := (await client.get(f"/readers?after={after}")).json():
            pages += [reader["name"] for reader in page]
            after = page[-1]["id"]
        assert pages == [str(number) for number in range(1, 251)]
        for number in ("99999999999", "-1", "x", "1.5", "9" * 5000, "%00", "NaN"):
            assert (await client.get(f"/readers?after={number}")).status_code == 422
        assert (await careless.get("/readers/99999999999")).status_code == 500


@pytest.mark.defect("D89")
def test_without_a_lifespan_the_error_names_what_is_missing(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no pool of an earlier start is left, of another loop and closed."""
    monkeypatch.setenv("DATABASE_URL", new_database())
    with pytest.raises(AttributeError, match="'State' object has no attribute 'pool'"):
        TestClient(asyncpg_pool.app).get("/readers")
    with pytest.raises(AttributeError, match=r"'NoneType' .* 'acquire'"):
        TestClient(naive_asyncpg_pool.app).get("/readers")
    for _ in range(2):
        with TestClient(asyncpg_pool.app) as client:
            assert client.get("/readers").status_code == 200


@pytest.mark.defect("D94")
async def test_clients_that_do_not_read_hold_no_connection(
    recipe: Server, naive: Server
) -> None:
    async def stall(server: Server, client: httpx2.AsyncClient) -> list[Any]:
        headers = {"x-stall": "1"}
        stalled = [
            asyncio.create_task(client.get("/readers", headers=headers))
            for _ in range(POOL_SIZE)
        ]
        async with asyncio.timeout(20):
            while server.log.count("stalled") < POOL_SIZE:
                await asyncio.sleep(0.01)
        return stalled

    async with alone(recipe) as client, alone(naive) as careless:
        await stall(recipe, client)
        assert await read(client) == 200
        await client.get("/release")

        await stall(naive, careless)
        waiting = asyncio.create_task(read(careless))
        for _ in range(20):  # in this time, others come and go
            assert (await careless.get("/health")).status_code == 200
        assert not waiting.done()
        await careless.get("/release")
        assert await waiting == 200


async def test_without_a_free_connection_it_is_503_and_then_all_is_well(
    recipe: Server, naive: Server
) -> None:
    async def crowded(server: Server) -> tuple[Counter[int], Counter[str]]:
        """What 15 requests hear while the table is locked; 10 of them wait for it."""
        async with database(server) as connection, alone(server) as client:
            async with connection.transaction():
                await connection.execute("LOCK TABLE readers")
                tasks = {asyncio.create_task(client.get("/readers")) for _ in "." * 15}
                await until(connection, WAITING, POOL_SIZE)
                heard: set[asyncio.Task[httpx2.Response]] = set()
                if server is recipe:
                    while len(heard) < 5:
                        how = asyncio.FIRST_COMPLETED
                        heard |= (await asyncio.wait(tasks - heard, return_when=how))[0]
            others = await asyncio.gather(*(tasks - heard))
            assert {response.status_code for response in others} == {200}
            refused = [task.result() for task in heard]
            retry = Counter(response.headers["retry-after"] for response in refused)
            return Counter(response.status_code for response in refused), retry

    assert await crowded(recipe) == ({503: 5}, {"2": 5})
    assert await crowded(naive) == ({}, {})  # it lets them wait, forever if it must


async def test_bad_input_is_refused(recipe: Server) -> None:
    good = {"name": "Ada", "email": "ada@example.com"}
    bad: list[object] = [{}, [], None, "x", {"name": "Ada"}]
    bad += [good | {"name": name} for name in ("", "x" * 101, "a\0b", None, 1)]
    bad += [good | {"email": email} for email in ("", "ada", "a\0@b.example", None)]
    async with alone(recipe) as client:
        for body in bad:
            assert (await client.post("/readers", json=body)).status_code == 422
        big = good | {"name": "x" * 2**16}
        assert (await client.post("/readers", json=big)).status_code == 413
        tricky = good | {"name": "'); DROP TABLE readers; --\U0001f600\n"}
        assert (await client.post("/readers", json=tricky)).json()["id"] == 1


async def test_of_many_who_want_one_email_one_gets_it(recipe: Server) -> None:
    async with database(recipe) as connection, alone(recipe) as client:
        statuses = Counter(await asyncio.gather(*(add(client) for _ in "." * 20)))
        assert statuses == {201: 1, 409: 19}
        assert await connection.fetchval("SELECT count(*) FROM readers") == 1


async def test_connections_that_a_restart_cuts_are_replaced(recipe: Server) -> None:
    async with database(recipe) as connection, alone(recipe) as client:
        await disconnect_others(connection)  # at night
        assert await read(client) == 200
        async with connection.transaction():
            await connection.execute("LOCK TABLE readers")
            answers = [
                asyncio.create_task(work) for work in (read(client), add(client))
            ]
            await until(connection, WAITING, 2)
            await disconnect_others(connection)  # in the middle of a request
            assert [await answer for answer in answers] == [503, 503]
        for path in ("/cut", "/cut?transaction=1"):  # between two statements
            assert (await client.get(path)).status_code == 503
        assert [await read(client), await add(client)] == [200, 201]


async def test_a_database_that_is_gone_or_hangs_is_503_until_it_is_back(
    start: Start, new_database: Callable[[], str]
) -> None:
    async with Proxy(await asyncio.to_thread(new_database)) as proxy:
        server = await start(RECIPE, proxy.url, 1)
        async with alone(server) as client:
            assert await add(client) == 201
            await proxy.cut()
            assert [await read(client), await add(client)] == [503, 503]
            await proxy.open(proxy.port)
            assert [await read(client), await add(client)] == [200, 409]
            proxy.freeze()
            assert {*await asyncio.gather(read(client), add(client))} == {503}
            proxy.thaw()
            assert [await read(client), await add(client)] == [200, 409]
        await asyncio.to_thread(server.stop)


async def test_a_database_that_hangs_does_not_hold_up_a_stop(
    start: Start, new_database: Callable[[], str]
) -> None:
    async with Proxy(await asyncio.to_thread(new_database)) as proxy:
        recipe = await start(RECIPE, proxy.url, 1)
        naive = await start(NAIVE, proxy.url, 1)
        proxy.freeze()
        for server in (naive, recipe):
            server.terminate()
        await asyncio.to_thread(recipe.wait)
        assert naive.is_running
        naive.kill()


async def test_a_transaction_in_flight_at_sigterm_is_finished(start: Start) -> None:
    recipe = await start(RECIPE)
    async with database(recipe) as connection, alone(recipe) as client:
        async with connection.transaction():
            await connection.execute("LOCK TABLE readers")
            answer = asyncio.create_task(add(client))
            await until(connection, WAITING)
            recipe.terminate()
            await asyncio.to_thread(recipe.wait_for_log, "Shutting down")
        assert await answer == 201
        await asyncio.to_thread(recipe.wait)
        assert await connection.fetchval("SELECT count(*) FROM readers") == 1


async def test_a_request_that_is_cancelled_returns_its_connection(
    recipe: Server,
) -> None:
    """Once, twice and thrice; more often than the pool is large."""
    async with database(recipe) as connection, alone(recipe) as client:
        async with connection.transaction():
            await connection.execute("LOCK TABLE readers")
            for times in (1, 2, 3) * 4:
                cancelled = await client.get(f"/cancelled?times={times}")
                assert cancelled.json() == "cancelled"
        await until(connection, WAITING, 0)
        assert Counter(
            await asyncio.gather(*(read(client) for _ in range(POOL_SIZE)))
        ) == {200: POOL_SIZE}


async def test_a_migration_may_fail_one_transaction(recipe: Server) -> None:
    async with database(recipe) as connection, alone(recipe) as client:
        assert await add(client) == 201
        await connection.execute("ALTER TABLE readers ALTER name TYPE varchar(200)")
        emails = ("bob@example.com", "bob@example.com", "eve@example.com")
        assert [await add(client, email) for email in emails] == [500, 201, 201]
        cached = "cached statement plan is invalid due to a database schema or conf"
        await asyncio.to_thread(recipe.wait_for_log, cached)


async def test_pool_fetch_waits_for_a_connection_without_a_limit(
    postgres_url: str,
) -> None:
    async with asyncpg.create_pool(postgres_url, min_size=1, max_size=1) as pool:
        async with pool.acquire():
            waiting = asyncio.create_task(pool.fetchval("SELECT 1", timeout=0.001))
            with pytest.raises(TimeoutError):
                await pool.acquire(timeout=0.1)
            assert not waiting.done()
            waiting.cancel()


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(asyncpg_pool.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve("recipes.databases.asyncpg_pool", env=no_url)


async def test_a_deferred_constraint_fails_at_commit_and_may_deadlock(
    new_database: Callable[[], str],
) -> None:
    url = await asyncio.to_thread(new_database)
    await execute(url, "CREATE TABLE t (v int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    inserted = asyncio.Barrier(3)

    async def insert(connection: Any) -> None:
        await connection.execute("INSERT INTO t VALUES (1)")

    async def end(connection: Any) -> str:
        try:
            async with connection.transaction():
                await insert(connection)
                await inserted.wait()
        except asyncpg.PostgresError as error:
            return type(error).__name__
        return "committed"

    async with AsyncExitStack() as stack:
        first, *others = [await asyncpg.connect(url) for _ in range(3)]
        for connection in (first, *others):
            stack.push_async_callback(connection.close)
        transaction = first.transaction()
        await transaction.start()
        await insert(first)
        ends = asyncio.gather(*(end(connection) for connection in others))
        await inserted.wait()
        await transaction.rollback()
        assert sorted(await ends) == ["DeadlockDetectedError", "committed"]
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert(first)  # no transaction: commits at once


async def test_a_connection_that_dies_at_any_moment_is_no_500(recipe: Server) -> None:
    async with alone(recipe) as client:

        async def send(number: int) -> int:
            return await add(client, f"{number}@example.com")

        assert await statuses_while_connections_die(recipe, send) <= {201, 503}
