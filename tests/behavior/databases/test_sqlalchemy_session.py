"""databases/sqlalchemy_session: a 201 means that the row is there."""

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Literal, cast

import httpx2
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm.exc import DetachedInstanceError

from recipes.databases import sqlalchemy_session
from recipes.databases.sqlalchemy_session import NO_URL, POOL_SIZE
from tests.behavior.databases.postgres import (
    OTHERS,
    WAITING,
    Proxy,
    database,
    execute,
    shared_servers,
    statuses_while_connections_die,
    until,
)
from tests.conftest import Serve
from tests.harness.server import Server, run_script

RECIPE = "recipes.databases.sqlalchemy_session"
DEFERRED = """
    ALTER TABLE members DROP CONSTRAINT members_email_key;
    ALTER TABLE members ADD UNIQUE (email) DEFERRABLE INITIALLY DEFERRED
"""
HELD = """
    CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER held AFTER INSERT ON members
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION held();
    SELECT pg_advisory_lock(42)
"""
FRESH = """
    DROP FUNCTION IF EXISTS held CASCADE;
    ALTER TABLE members DROP CONSTRAINT members_email_key;
    ALTER TABLE members ADD UNIQUE (email);
    TRUNCATE members RESTART IDENTITY
"""
REFUSING = """
    ALTER TABLE members RENAME TO everyone;
    CREATE VIEW members AS SELECT * FROM everyone WHERE id < 0 WITH CHECK OPTION
"""
ALLOWING = "DROP VIEW members; ALTER TABLE everyone RENAME TO members"
RELEASE = "SELECT pg_advisory_unlock(42)"
ROWS = "SELECT count(*) FROM members"


@pytest.fixture(scope="module")
def servers(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """Recipe and naive form, each with a database of its own, for most tests."""
    names = "recipe", "naive"
    watched = "tests.behavior.databases.watched_sqlalchemy_session"
    targets = [f"{watched}:{name}" for name in names]
    folder = tmp_path_factory.mktemp("sqlalchemy_session")
    with shared_servers(postgres_url, folder, "SELECT", *targets) as servers:
        yield dict(zip(names, servers, strict=True))


@pytest.fixture
def recipe(servers: dict[str, Server]) -> Server:
    return fresh(servers["recipe"])


@pytest.fixture
def naive(servers: dict[str, Server]) -> Server:
    return fresh(servers["naive"])


def fresh(server: Server) -> Server:
    """`server` with an empty table."""
    asyncio.run(execute(server.options.env["DATABASE_URL"], FRESH))
    return server


def alone(server: Server) -> httpx2.AsyncClient:
    """A client with a connection for each request: uvicorn closes it after a 500."""
    return server.client(headers={"Connection": "close"})


async def join(client: httpx2.AsyncClient, email: str = "ada@example.com") -> int:
    return (await client.post("/members", json={"email": email})).status_code


async def read(client: httpx2.AsyncClient, number: int | str = 1) -> int:
    return (await client.get(f"/members/{number}")).status_code


@pytest.mark.defect("D7")
async def test_a_commit_that_fails_is_not_a_success(
    recipe: Server, naive: Server
) -> None:
    """The second row breaks a constraint that is checked at once, or at COMMIT."""

    async def twice(server: Server) -> list[int]:
        statuses: list[int] = []
        async with database(server) as connection, alone(server) as client:
            for rows, change in enumerate(["SELECT 1", DEFERRED], 1):
                await connection.execute(change)
                email = f"{rows}@example.com"
                statuses += [await join(client, email) for _ in range(2)]
                await until(connection, ROWS, rows)
        return statuses

    assert await twice(recipe) == [201, 409, 201, 409]
    assert await twice(naive) == [200, 200, 200, 200]  # and 2 rows


@pytest.mark.defect("D8")
async def test_the_answer_waits_for_the_commit(recipe: Server, naive: Server) -> None:
    async def joining(server: Server) -> tuple[bool, int, object]:
        """Was it answered while the COMMIT hung? What was to be read after it?"""
        async with database(server) as connection, alone(server) as client:
            await connection.execute(HELD)
            answer = asyncio.create_task(join(client))
            await until(connection, WAITING)
            if server is naive:
                await answer
            answered = answer.done()
            if not answered:
                await connection.execute(RELEASE)
            status = await answer
            async with alone(server) as another:
                found = (await another.get("/members/1")).json()
            return answered, status, found

    assert await joining(recipe) == (False, 201, {"id": 1, "email": "ada@example.com"})
    assert await joining(naive) == (True, 200, None)


@pytest.mark.defect("D9")
def test_a_background_task_sees_the_row(recipe: Server, naive: Server) -> None:
    for server, rows in (recipe, 1), (naive, 0):
        httpx2.post(f"{server.url}/with-task", json={"email": "ada@example.com"})
        server.wait_for_log(f"the task sees {rows} rows")


@pytest.mark.defect("D10")
async def test_a_new_member_is_found_without_its_password_hash(
    recipe: Server, naive: Server
) -> None:
    async def columns(server: Server) -> set[str]:
        async with database(server) as connection, alone(server) as client:
            created = await client.post("/members", json={"email": "ada@example.com"})
            await until(connection, ROWS)
            await connection.execute("UPDATE members SET password_hash = 'secret'")
            assert created.is_success
            return set((await client.get("/members/1")).json())

    assert await columns(recipe) == {"id", "email"}
    assert await columns(naive) == {"id", "email", "password_hash"}


@pytest.mark.defect("D11")
async def test_an_id_out_of_range_is_no_server_error(
    recipe: Server, naive: Server
) -> None:
    async with alone(recipe) as client, alone(naive) as careless:
        assert await read(client, 2**31 - 1) == 404
        assert await read(client, 2**31) == 422
        assert await read(careless, 2**31) == 500


async def test_bad_input_is_refused(recipe: Server) -> None:
    addresses: list[object] = [
        None, 1, [], {}, "", "ada", "a b@example.com", "@example.com", "a\0@b.example",
        "a@b.example\nBcc: c@d.example", f"{'x' * 300}@example.com",
    ]  # fmt: skip
    bad: list[object] = [{"email": address} for address in addresses]
    async with alone(recipe) as client:
        for body in (*bad, None, [], {}, "ada@example.com"):
            assert (await client.post("/members", json=body)).status_code == 422
        assert await join(client, "a" * 2**16) == 413  # a 422 would repeat it
        for number in (2**31, 2**63, 10**30, 0, -1, "x", "1.5", "9" * 5000, "%00"):
            assert await read(client, number) == 422


async def test_of_many_who_want_one_email_one_gets_it(recipe: Server) -> None:
    async with alone(recipe) as client:
        answers = await asyncio.gather(*(join(client) for _ in range(2 * POOL_SIZE)))
        assert Counter(answers) == {201: 1, 409: 2 * POOL_SIZE - 1}
        assert await join(client, "bob@example.com") == 201


async def test_without_a_free_connection_the_answer_is_try_again(
    recipe: Server, naive: Server
) -> None:
    async def crowded(server: Server) -> tuple[Counter[int], Counter[str | None]]:
        """What 30 requests hear while another client locks the table."""
        async with database(server) as connection, alone(server) as client:
            async with connection.transaction():
                await connection.execute("LOCK TABLE members")
                tasks = [
                    asyncio.create_task(client.get("/members/1")) for _ in "." * 30
                ]
                size = POOL_SIZE if server is recipe else 15
                await until(connection, WAITING, size)
                early = asyncio.as_completed(tasks)
                refused = [await next(early) for _ in range(30 - size)]
            late = await asyncio.gather(*tasks)
            assert len([one for one in late if one.status_code < 500]) == size
        statuses = Counter(answer.status_code for answer in refused)
        return statuses, Counter(
            answer.headers.get("retry-after") for answer in refused
        )

    ours, theirs = await asyncio.gather(crowded(recipe), crowded(naive))
    assert ours == ({503: 20}, {"2": 20})
    assert theirs == ({500: 15}, {None: 15})


async def test_readers_that_stall_hold_no_connection(
    recipe: Server, naive: Server
) -> None:
    async def beside_stalled_readers(server: Server) -> int:
        count = 15  # fills the pool of the naive form
        async with alone(server) as client:
            stalled = [
                asyncio.create_task(client.get("/members/1", headers={"x-stall": "1"}))
                for _ in range(count)
            ]
            await asyncio.to_thread(server.wait_for_log, f"stalled: {count}")
            status = await read(client)
            await client.get("/release")
            await asyncio.gather(*stalled)
            return status

    assert await beside_stalled_readers(recipe) == 404
    assert await beside_stalled_readers(naive) == 500


async def test_after_a_restart_of_the_database_nobody_gets_an_error(
    recipe: Server, naive: Server
) -> None:
    async def after_restart(server: Server) -> int:
        async with database(server) as connection, alone(server) as client:
            assert await join(client) < 300
            await until(connection, ROWS)
            await connection.execute("SELECT pg_terminate_backend(pid)" + OTHERS)
            await until(connection, "SELECT count(*)" + OTHERS, 0)
            return await read(client)

    assert await after_restart(recipe) == 200
    assert await after_restart(naive) == 500


async def test_a_database_that_cannot_be_used_is_503(
    recipe: Server, naive: Server
) -> None:
    faults = ["not found", "refused", "refused twice", "slow", "full", "starting"]

    async def heard(server: Server) -> list[int]:
        async with database(server) as connection, alone(server) as client:

            async def read_with(fault: str) -> int:
                await client.post("/break", params={"how": fault})
                await connection.execute("SELECT pg_terminate_backend(pid)" + OTHERS)
                await until(connection, "SELECT count(*)" + OTHERS, 0)
                await read(client)  # from here on the pool is empty
                return await read(client)

            statuses = [await read_with(fault) for fault in faults]
            async with connection.transaction():
                await connection.execute("LOCK TABLE members")
                statuses.append(await read_with("hanging"))
            statuses.append(await read_with("nothing"))
            return statuses

    async with alone(recipe) as client:
        assert (await client.get("/elsewhere")).status_code == 500  # not the database's
    assert await heard(recipe) == [503] * 7 + [404]
    assert await heard(naive) == [500] * 7 + [200]


async def test_a_logged_error_hides_parameters_but_no_detail(
    recipe: Server, naive: Server
) -> None:
    async def logged(server: Server) -> str:
        """After an error that is no IntegrityError and has a DETAIL."""
        async with database(server) as connection, alone(server) as client:
            await connection.execute(REFUSING)
            await join(client, "secret@example.com")
            detail = "DETAIL:  Failing row contains (1, secret@example.com"
            log = await asyncio.to_thread(server.wait_for_log, detail)
            await connection.execute(ALLOWING)
            return log

    assert "[parameters: ('secret@example.com'" not in await logged(recipe)
    assert "[parameters: ('secret@example.com'" in await logged(naive)


async def test_a_connection_lost_in_a_statement_is_replaced(recipe: Server) -> None:
    async with database(recipe) as connection, alone(recipe) as client:
        async with connection.transaction():
            await connection.execute("LOCK TABLE members")
            answer = asyncio.create_task(read(client))
            await until(connection, WAITING)
            await connection.execute("SELECT pg_terminate_backend(pid)" + OTHERS)
            assert await answer == 503
        assert await read(client) == 404


@pytest.mark.parametrize(("scope", "status"), [("function", 500), ("request", 200)])
def test_an_endpoint_cannot_catch_the_commit_of_its_dependency(
    scope: Literal["function", "request"], status: int
) -> None:
    app = FastAPI()

    async def get_db() -> AsyncIterator[None]:
        yield
        raise IntegrityError("COMMIT", None, Exception())

    @app.get("/", dependencies=[Depends(get_db, scope=scope)])
    def endpoint() -> None:
        """Is over before `get_db` goes on."""

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/").status_code == status


async def test_with_expire_on_commit_a_row_cannot_be_read_after_its_block(
    recipe: Server,
) -> None:
    url = make_url(recipe.options.env["DATABASE_URL"])
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    member = sqlalchemy_session.Member(email="ada@example.com")
    async with AsyncSession(engine) as session:
        session.add(member)
        await session.commit()
        with pytest.raises(MissingGreenlet):
            assert member.email
    with pytest.raises(DetachedInstanceError):
        assert member.email
    await engine.dispose()


async def test_asyncpg_does_not_know_sslmode(new_database: Callable[[], str]) -> None:
    url = make_url(await asyncio.to_thread(new_database) + "?sslmode=require")
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    with pytest.raises(TypeError, match="unexpected keyword argument 'sslmode'"):
        await engine.connect()
    await engine.dispose()


async def test_a_database_that_is_gone_is_503_until_it_is_back(
    serve: Serve, new_database: Callable[[], str]
) -> None:
    url = await asyncio.to_thread(new_database)
    async with Proxy(url) as proxy:
        env = {"DATABASE_URL": proxy.url}
        server = await asyncio.to_thread(lambda: serve(RECIPE, env=env))
        async with alone(server) as client:
            assert await join(client) == 201
            await proxy.cut()
            assert [await read(client), await join(client)] == [503, 503]
            await proxy.open(proxy.port)
            assert [await read(client), await join(client)] == [200, 409]
        await asyncio.to_thread(server.stop)


async def test_a_database_that_hangs_does_not_hold_up_a_stop(
    new_database: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pooled connections are closed one by one, each after its own timeout."""

    async with Proxy(await asyncio.to_thread(new_database)) as proxy:
        monkeypatch.setenv("DATABASE_URL", proxy.url)
        async with sqlalchemy_session.lifespan(FastAPI()) as state:
            sessions = cast("async_sessionmaker[AsyncSession]", state["sessions"])
            async with AsyncExitStack() as stack:
                for _ in range(3):
                    session = await stack.enter_async_context(sessions())
                    await session.execute(text("SELECT 1"))
            proxy.freeze()
            monkeypatch.setattr(sqlalchemy_session, "COMMAND_TIMEOUT", 0.2)
        assert caplog.text.count("Exception closing connection") == 1


async def test_a_client_that_leaves_does_not_stop_its_commit(recipe: Server) -> None:
    body = b'{"email": "ada@example.com"}'
    head = b"POST /members HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    async with database(recipe) as connection, alone(recipe) as client:
        await connection.execute(HELD)
        with socket.create_connection(("127.0.0.1", recipe.port)) as impatient:
            impatient.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await until(connection, WAITING)
        await connection.execute(RELEASE)
        await until(connection, ROWS)
        assert await join(client) == 409


async def test_a_transaction_in_flight_at_sigterm_is_finished(
    serve: Serve, new_database: Callable[[], str]
) -> None:
    env = {"DATABASE_URL": await asyncio.to_thread(new_database)}
    recipe = await asyncio.to_thread(lambda: serve(RECIPE, env=env))
    async with database(recipe) as connection, alone(recipe) as client:
        await connection.execute(HELD)
        answer = asyncio.create_task(join(client))
        await until(connection, WAITING)
        recipe.terminate()
        await asyncio.to_thread(recipe.wait_for_log, "Shutting down")
        await connection.execute(RELEASE)
        assert await answer == 201
        assert await connection.fetchval(ROWS) == 1
        await asyncio.to_thread(recipe.wait)
        await until(connection, "SELECT count(*)" + OTHERS, 0)


async def test_a_statement_that_hangs_does_not_hold_up_a_stop(
    serve: Serve, new_database: Callable[[], str]
) -> None:
    env = {"DATABASE_URL": await asyncio.to_thread(new_database)}
    server = await asyncio.to_thread(
        lambda: serve(
            RECIPE,
            env=env,
            strict=False,
            timeout_graceful_shutdown=1,
        )
    )
    async with database(server) as connection, alone(server) as client:
        async with connection.transaction():
            await connection.execute("LOCK TABLE members")
            answer = asyncio.create_task(join(client))
            await until(connection, WAITING)
            server.terminate()
            assert await asyncio.to_thread(server.wait) == -15
            # uvicorn sends a 500, if the process lives long enough.
            with suppress(httpx2.RemoteProtocolError):
                assert await answer == 500
        await until(connection, "SELECT count(*)" + OTHERS, 0)
        assert await connection.fetchval(ROWS) == 0


def test_workers_start_at_once_and_any_usual_url_will_do(
    serve: Serve, new_database: Callable[[], str]
) -> None:
    url = new_database().removeprefix("postgresql")

    def start(scheme: str) -> int:
        target = RECIPE
        server = serve(target, env={"DATABASE_URL": scheme + url})
        return httpx2.get(f"{server.url}/members/1").status_code

    with ThreadPoolExecutor() as threads:
        schemes = ["postgres", "postgresql+asyncpg"]
        assert list(threads.map(start, schemes)) == [404, 404]


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(sqlalchemy_session.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve(RECIPE, env=no_url)


async def test_a_connection_that_dies_at_any_moment_is_no_500(recipe: Server) -> None:
    async with alone(recipe) as client:

        async def send(number: int) -> int:
            return await join(client, f"{number}@example.com")

        found = await statuses_while_connections_die(recipe, send)
        assert found <= {201, 503}, recipe.log
