"""databases/concurrent_writes: the sum stays the same, and a key moves money once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx2
import pytest

from recipes.databases import concurrent_writes
from recipes.databases.concurrent_writes import NO_URL, SCHEMA
from tests.behavior.databases.postgres import (
    Proxy,
    database,
    execute,
    shared_servers,
    statuses_while_connections_die,
    until,
)
from tests.conftest import Serve
from tests.harness.server import Server, run_script

RECIPE = "recipes.databases.concurrent_writes"
NAIVE = "tests.behavior.databases.naive_concurrent_writes"
HOLDING = "tests.behavior.databases.held_concurrent_writes"
FRESH = f"""
    DROP FUNCTION IF EXISTS held, held_commit, conflict CASCADE;
    DROP SEQUENCE IF EXISTS attempts;
    TRUNCATE money_accounts, money_transfers;
    {SCHEMA}
"""
BLOCKED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
# A deadlock is found after a tenth of the usual second.
QUICK = """
    ; DO 'BEGIN EXECUTE format(''ALTER DATABASE %I SET deadlock_timeout = 100'',
        current_database()); END'
"""
# Each UPDATE locks its row, and then waits for who holds lock 42.
HELD = """
    CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NEW; END';
    CREATE TRIGGER held BEFORE UPDATE ON money_accounts
        FOR EACH ROW EXECUTE FUNCTION held();
    SELECT pg_advisory_lock(42)
"""
# The same for each COMMIT.
HELD_COMMIT = """
    CREATE FUNCTION held_commit() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NEW; END';
    CREATE CONSTRAINT TRIGGER held_commit AFTER INSERT ON money_transfers
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION held_commit();
    SELECT pg_advisory_lock(42)
"""
RELEASE = "SELECT pg_advisory_unlock(42)"
KEY = "the-same-key"
CONFLICT = """
    CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM nextval(''attempts''); RAISE SQLSTATE ''40001''; END';
    CREATE SEQUENCE attempts;
    CREATE TRIGGER conflict BEFORE UPDATE ON money_accounts
        FOR EACH ROW EXECUTE FUNCTION conflict()
"""


@pytest.fixture(scope="module")
def shared(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("concurrent_writes")
    with shared_servers(postgres_url, folder, SCHEMA + QUICK, RECIPE, NAIVE) as servers:
        yield servers


@pytest.fixture
def servers(shared: list[Server]) -> list[Server]:
    """Recipe and naive form, each with a database of its own, which is as new."""
    for server in shared:
        asyncio.run(execute(server.options.env["DATABASE_URL"], FRESH))
    return shared


async def move(
    server: Server,
    source: int = 1,
    target: int = 2,
    cents: int = 100,
    key: str = "",
    *,
    hold: bool = False,
) -> tuple[int, Any]:
    body = {"source": source, "target": target, "cents": cents}
    headers = {"Idempotency-Key": key or uuid4().hex, "Connection": "close"}
    headers |= {"x-hold": "1"} if hold else {}
    async with server.client(headers=headers, verify=False) as client:  # no TLS
        response = await client.post("/transfers", json=body)
        return response.status_code, response.json() if response.is_success else None


async def balances(server: Server) -> list[int]:
    async with database(server) as connection:
        rows = await connection.fetch("SELECT cents FROM money_accounts ORDER BY id")
        return [row["cents"] for row in rows]


@asynccontextmanager
async def locked(server: Server, account: int) -> AsyncIterator[Any]:
    """While another one has the lock of the account."""
    async with database(server) as connection, connection.transaction():
        query = "SELECT FROM money_accounts WHERE id = $1 FOR UPDATE"
        await connection.execute("SET LOCAL deadlock_timeout = '30s'")
        await connection.fetch(query, account)
        yield connection


async def test_no_update_is_lost(servers: list[Server]) -> None:
    async def ten_at_once(server: Server) -> list[int]:
        async with database(server) as watching:
            async with locked(server, 1):
                moves = [asyncio.create_task(move(server)) for _ in range(10)]
                await until(watching, BLOCKED, 10)
            statuses = [(await one)[0] for one in moves]
        assert statuses == [201] * 10
        return await balances(server)

    recipe, naive = servers
    assert await ten_at_once(recipe) == [99_000, 101_000]
    assert await ten_at_once(naive) == [99_900, 100_100]


async def test_opposite_transfers_do_not_deadlock(servers: list[Server]) -> None:
    async def opposite(server: Server) -> Counter[int]:
        async with database(server) as connection:
            await connection.execute(HELD)
            moves = [
                asyncio.create_task(move(server, *way)) for way in ((1, 2), (2, 1))
            ]
            await until(connection, BLOCKED, 2)
            await connection.execute(RELEASE)
            return Counter([(await one)[0] for one in moves])

    recipe, naive = servers
    assert await opposite(recipe) == {201: 2}
    assert await opposite(naive) == {201: 1, 500: 1}
    assert await balances(recipe) == [100_000, 100_000]


async def test_a_key_moves_money_once(servers: list[Server], serve: Serve) -> None:
    """The same request ten times at once, at two workers, and once more."""

    async def repeated(*workers: Server) -> tuple[list[Any], list[int]]:
        async with database(workers[0]) as watching:
            async with locked(workers[0], 1):
                moves = [
                    asyncio.create_task(move(workers[n % len(workers)], key=KEY))
                    for n in range(10)
                ]
                await until(watching, BLOCKED, 10)
            answers = [await one for one in moves]
        return [*answers, await move(workers[0], key=KEY)], await balances(workers[0])

    recipe, naive = servers
    another = await asyncio.to_thread(lambda: serve(RECIPE, env=recipe.options.env))
    answer = (201, {"balance": 99_900})
    assert await repeated(recipe, another) == ([answer] * 11, [99_900, 100_100])
    answers, left = await repeated(naive)
    assert answers[-1] != answers[0]
    assert left == [99_800, 100_200]

    assert (await move(recipe, cents=101, key=KEY))[0] == 422
    assert (await move(recipe, 1, 3, key=KEY))[0] == 404
    assert await balances(recipe) == [99_900, 100_100]


async def test_a_key_is_for_one_transfer_from_an_account(servers: list[Server]) -> None:
    """Four at once: the two from one account differ, those of others are their own."""
    recipe, _ = servers
    async with database(recipe) as connection:
        await connection.execute("INSERT INTO money_accounts VALUES (3, 100), (4, 100)")
        await connection.execute(HELD)
        ways = ((1, 2, 5), (1, 2, 6), (3, 4, 5), (4, 3, 5))
        moves = [asyncio.create_task(move(recipe, *way, key=KEY)) for way in ways]
        await until(connection, BLOCKED, 4)
        await connection.execute(RELEASE)
        statuses = [(await one)[0] for one in moves]
        assert sorted(statuses[:2]) == [201, 422]
        assert statuses[2:] == [201, 201]
        assert (await balances(recipe))[2:] == [100, 100]


async def test_after_a_crash_between_commit_and_answer_the_repeat_moves_nothing(
    servers: list[Server], serve: Serve
) -> None:
    recipe, _ = servers
    env = recipe.options.env | {"COMMAND_TIMEOUT": "5"}
    crashing = await asyncio.to_thread(lambda: serve(HOLDING, env=env))
    unanswered = asyncio.create_task(move(crashing, key=KEY, hold=True))
    await asyncio.to_thread(crashing.wait_for_log, "held")
    assert await balances(recipe) == [99_900, 100_100]
    crashing.kill()
    with pytest.raises(httpx2.TransportError):
        await unanswered
    assert await move(recipe, key=KEY) == (201, {"balance": 99_900})
    assert await balances(recipe) == [99_900, 100_100]


async def test_a_commit_whose_answer_is_lost_moves_money_once(
    servers: list[Server], serve: Serve
) -> None:
    """The next attempt finds the key."""
    recipe, _ = servers
    async with (
        database(recipe) as connection,
        Proxy(recipe.options.env["DATABASE_URL"]) as proxy,
    ):
        env = {"DATABASE_URL": proxy.url, "COMMAND_TIMEOUT": "5"}
        server = await asyncio.to_thread(lambda: serve(HOLDING, env=env))
        await connection.execute(HELD_COMMIT)
        answer = asyncio.create_task(move(server))
        await until(connection, BLOCKED, 1)
        proxy.freeze()
        await connection.execute(RELEASE)
        await until(connection, "SELECT count(*) FROM money_transfers")
        await proxy.cut()
        await proxy.open(proxy.port)
        proxy.thaw()
        assert await answer == (201, {"balance": 99_900})
        assert await balances(recipe) == [99_900, 100_100]
        await asyncio.to_thread(server.stop)


async def test_a_deadlock_with_others_is_tried_again(
    servers: list[Server], serve: Serve
) -> None:
    async def statuses(server: Server) -> int:
        """One has account 2, the request account 1, and each wants the other's."""
        query = "SELECT FROM money_accounts WHERE id = 1 FOR UPDATE"
        while True:
            try:
                async with database(server) as watching, locked(server, 2) as other:
                    status = asyncio.create_task(move(server))
                    await until(watching, BLOCKED, 1)
                    await other.fetch(query)
            except asyncpg.DeadlockDetectedError:  # we were the victim, not the request
                await status
                await execute(server.options.env["DATABASE_URL"], FRESH)
            else:
                return (await status)[0]

    _, naive = servers
    env = servers[0].options.env | {"COMMAND_TIMEOUT": "30"}  # no 503 for slowness
    recipe = await asyncio.to_thread(lambda: serve(HOLDING, env=env))
    assert await statuses(recipe) == 201
    assert await statuses(naive) == 500
    assert await balances(recipe) == [99_900, 100_100]


async def test_attempts_are_bounded(servers: list[Server]) -> None:
    recipe, _ = servers
    async with database(recipe) as connection:
        await connection.execute(CONFLICT)
        assert (await move(recipe))[0] == 503
        attempts = await connection.fetchval("SELECT last_value FROM attempts")
        assert attempts == concurrent_writes.ATTEMPTS


async def test_who_waits_too_long_for_a_lock_is_told_to_try_again(
    servers: list[Server], serve: Serve
) -> None:
    env = servers[0].options.env | {"COMMAND_TIMEOUT": "2"}
    server = await asyncio.to_thread(lambda: serve(HOLDING, env=env))
    async with locked(server, 1):
        assert (await move(server, key=KEY))[0] == 503
    assert (await move(server, key=KEY))[0] == 201
    assert await balances(server) == [99_900, 100_100]


async def test_a_lost_connection_is_replaced_and_the_money_moves_once(
    servers: list[Server],
) -> None:
    async def answer(server: Server) -> int:
        async with database(server) as watching, locked(server, 1):
            answer = asyncio.create_task(move(server))
            await until(watching, BLOCKED, 1)
            terminate = "SELECT pg_terminate_backend(pid, 20_000)"
            await watching.execute(BLOCKED.replace("SELECT count(*)", terminate))
            if server is recipe:
                await until(watching, BLOCKED, 1)  # the next attempt
        return (await answer)[0]

    recipe, naive = servers
    assert await answer(recipe) == 201
    assert await answer(naive) == 500
    assert await balances(recipe) == [99_900, 100_100]


async def test_what_cannot_be_is_refused_and_moves_nothing(
    servers: list[Server],
) -> None:
    recipe, _ = servers
    cases: list[tuple[int, tuple[Any, ...]]] = [
        (409, (1, 2, 100_001)), (409, (1, 2, 10**12)), (422, (1, 2, 10**12 + 1)),
        (422, (1, 2, 0)), (422, (1, 2, -5)), (422, (1, 2, 0.5)), (422, (1, 2, "x")),
        (404, (1, 1, 5)), (404, (1, 7, 5)), (404, (2**63 - 1, 1, 5)),
        (422, (2**63, 1, 5)), (422, (0, 1, 5)), (422, (1, 2, 5, "short")),
        (422, (1, 2, 5, "x" * 101)), (422, (1, 2, 5, "with spaces")),
    ]  # fmt: skip
    for status, case in cases:
        assert (await move(recipe, *case))[0] == status, case
    assert (await move(recipe, 1, 2, 100_001, KEY))[0] == 409
    assert (await move(recipe, 2, 1, 5))[0] == 201
    assert (await move(recipe, 1, 2, 100_001, KEY))[0] == 201  # now there is enough
    assert sum(await balances(recipe)) == 200_000


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(concurrent_writes.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve("recipes.databases.concurrent_writes", env=no_url)


async def test_a_connection_that_dies_at_any_moment_is_no_500(
    servers: list[Server],
) -> None:
    async def send(_: int) -> int:
        return (await move(servers[0], cents=1))[0]

    statuses = await statuses_while_connections_die(servers[0], send)
    assert statuses <= {201, 503}
    assert sum(await balances(servers[0])) == 200_000
