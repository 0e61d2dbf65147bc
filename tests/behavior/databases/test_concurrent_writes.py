"""databases/concurrent_writes: the sum stays the same, and a key moves money once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from recipes.databases import concurrent_writes
from recipes.databases.concurrent_writes import NO_URL, SCHEMA
from tests.behavior.databases.postgres import database, until
from tests.conftest import Serve, environment
from tests.harness.server import Server, run_script

TARGETS = (
    "recipes.databases.concurrent_writes",
    ("tests.behavior.databases.naive_concurrent_writes"),
)
BLOCKED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
# Each UPDATE locks its row, and then waits for who holds lock 42.
HELD = """
    CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NEW; END';
    CREATE TRIGGER held BEFORE UPDATE ON money_accounts
        FOR EACH ROW EXECUTE FUNCTION held();
    SELECT pg_advisory_lock(42)
"""
KEY = "the-same-key"
CONFLICT = """
    CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM nextval(''attempts''); RAISE SQLSTATE ''40001''; END';
    CREATE SEQUENCE attempts;
    CREATE TRIGGER conflict BEFORE UPDATE ON money_accounts
        FOR EACH ROW EXECUTE FUNCTION conflict()
"""


@pytest.fixture
def servers(request: pytest.FixtureRequest, serve: Serve) -> list[Server]:
    """Recipe and naive form, each with a database of its own."""
    started = []
    for target in TARGETS:
        env = environment(request, "databases", "concurrent_writes")
        asyncio.run(execute(env["DATABASE_URL"], SCHEMA))
        started.append(serve(target, env=env, strict="naive" not in target))
    return started


async def execute(url: str, command: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(command)
    await connection.close()


async def move(
    server: Server, source: int = 1, target: int = 2, cents: int = 100, key: str = ""
) -> tuple[int, Any]:
    body = {"source": source, "target": target, "cents": cents}
    headers = {"Idempotency-Key": key or uuid4().hex, "Connection": "close"}
    async with server.client(headers=headers) as client:
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
            await connection.execute("SELECT pg_advisory_unlock(42)")
            return Counter([(await one)[0] for one in moves])

    recipe, naive = servers
    assert await opposite(recipe) == {201: 2}
    assert await opposite(naive) == {201: 1, 500: 1}
    assert await balances(recipe) == [100_000, 100_000]


async def test_a_key_moves_money_once(servers: list[Server]) -> None:
    """The same request ten times at once, and once more."""

    async def repeated(server: Server) -> tuple[list[Any], list[int]]:
        async with database(server) as watching:
            async with locked(server, 1):
                moves = [asyncio.create_task(move(server, key=KEY)) for _ in range(10)]
                await until(watching, BLOCKED, 10)
            answers = [await one for one in moves]
        return [*answers, await move(server, key=KEY)], await balances(server)

    recipe, naive = servers
    answer = (201, {"balance": 99_900})
    assert await repeated(recipe) == ([answer] * 11, [99_900, 100_100])
    answers, left = await repeated(naive)
    assert answers[-1] != answers[0]
    assert left == [99_800, 100_200]

    assert (await move(recipe, cents=101, key=KEY))[0] == 422
    assert (await move(recipe, 2, 1, key=KEY))[0] == 422
    assert await balances(recipe) == [99_900, 100_100]


async def test_a_key_for_two_transfers_at_once_is_for_one(
    servers: list[Server],
) -> None:
    recipe, _ = servers
    async with database(recipe) as connection:
        await connection.execute("INSERT INTO money_accounts VALUES (3, 100), (4, 100)")
        await connection.execute(HELD)
        ways = ((1, 2), (3, 4))
        moves = [asyncio.create_task(move(recipe, *way, key=KEY)) for way in ways]
        await until(connection, BLOCKED, 2)
        await connection.execute("SELECT pg_advisory_unlock(42)")
        assert Counter([(await one)[0] for one in moves]) == {201: 1, 422: 1}
        assert sum(await balances(recipe)) == 200_200


async def test_a_deadlock_with_others_is_tried_again(servers: list[Server]) -> None:
    async def statuses(server: Server) -> int:
        """One has account 2, the request account 1, and each wants the other's."""
        async with database(server) as watching:
            async with locked(server, 2) as other:
                status = asyncio.create_task(move(server))
                await until(watching, BLOCKED, 1)
                query = "SELECT FROM money_accounts WHERE id = 1 FOR UPDATE"
                await other.fetch(query)  # the request is the victim
            return (await status)[0]

    recipe, naive = servers
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
    env = servers[0].options.env
    target = "tests.behavior.databases.impatient_concurrent_writes"
    server = await asyncio.to_thread(lambda: serve(target, env=env))
    async with locked(server, 1):
        assert (await move(server, key=KEY))[0] == 503
    assert (await move(server, key=KEY))[0] == 201
    assert await balances(server) == [99_900, 100_100]


async def test_a_lost_connection_moves_nothing_and_the_repeat_once(
    servers: list[Server],
) -> None:
    recipe, _ = servers
    async with database(recipe) as watching:
        async with locked(recipe, 1):
            answer = asyncio.create_task(move(recipe, key=KEY))
            await until(watching, BLOCKED, 1)
            terminate = "SELECT pg_terminate_backend(pid, 20_000)"
            await watching.execute(BLOCKED.replace("SELECT count(*)", terminate))
            assert (await answer)[0] == 500
    assert await balances(recipe) == [100_000, 100_000]
    assert [(await move(recipe, key=KEY))[0] for _ in range(2)] == [201, 201]
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
    async with recipe.client() as client:
        found = [
            (await client.get(f"/accounts/{account}")).status_code
            for account in (1, 7, 2**63 - 1, 2**63, 0, "x")
        ]
        assert found == [200, 404, 404, 422, 422, 422]
    assert sum(await balances(recipe)) == 200_000


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(concurrent_writes.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve("recipes.databases.concurrent_writes", env=no_url)
