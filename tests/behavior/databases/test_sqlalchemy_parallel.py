"""databases/sqlalchemy_parallel: three queries at once, for any number of requests."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from recipes.databases import sqlalchemy_parallel
from recipes.databases.sqlalchemy_parallel import NO_URL
from tests.behavior.databases.postgres import (
    OTHERS,
    WAITING,
    Proxy,
    database,
    disconnect_others,
    shared_servers,
    until,
)
from tests.conftest import Serve
from tests.harness.server import Server, run_script

RECIPE = "recipes.databases.sqlalchemy_parallel"
CROWDED = "tests.behavior.databases.crowded_sqlalchemy_parallel"
LOCK = "LOCK TABLE board_orders, board_visits, board_reviews"
CONNECTIONS = "SELECT count(*)" + OTHERS
EMPTY = {"orders": 0, "visits": 0, "reviews": 0}


@pytest.fixture(scope="module")
def shared(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("sqlalchemy_parallel")
    targets = f"{CROWDED}:recipe", f"{CROWDED}:naive"
    with shared_servers(postgres_url, folder, "SELECT", *targets) as servers:
        yield servers


@pytest.fixture
def recipe(shared: list[Server]) -> Server:
    return shared[0]


@pytest.fixture
def naive(shared: list[Server]) -> Server:
    return shared[1]


@pytest.fixture
def impatient(recipe: Server, serve: Serve) -> Server:
    """`recipe` would wait 30 s for a connection."""
    env = recipe.options.env | {"POOL_TIMEOUT": "0.2"}
    return serve(f"{CROWDED}:recipe", env=env)


def alone(server: Server) -> httpx2.AsyncClient:
    """A client with a connection for each request: uvicorn closes it after a 500."""
    return server.client(headers={"Connection": "close"}, timeout=60)


async def get(client: httpx2.AsyncClient, path: str = "/board") -> int:
    return (await client.get(path)).status_code


@pytest.mark.defect("D75", "D76", "D77")
async def test_a_request_runs_its_queries_at_once_and_ten_requests_are_answered(
    recipe: Server, naive: Server
) -> None:
    async def heard(server: Server, at_once: int) -> tuple[int, set[int]]:
        """How many queries of a request wait at a time; what ten requests hear."""
        async with database(server) as connection, alone(server) as client:
            async with connection.transaction():
                await connection.execute(LOCK)
                answer = asyncio.create_task(client.get("/board"))
                await until(connection, WAITING, at_once)
                counts = [await connection.fetchval(WAITING) for _ in range(20)]
            assert (await answer).json() == EMPTY
            async with connection.transaction():
                await connection.execute(LOCK)
                tasks = [asyncio.create_task(get(client)) for _ in range(10)]
                if server is recipe:
                    await until(connection, WAITING, 3)
                else:  # one fails while others wait
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            statuses = set(await asyncio.gather(*tasks))
        return max(counts), statuses

    ours, theirs = await asyncio.gather(heard(recipe, 3), heard(naive, 1))
    assert ours == (3, {200})
    assert (theirs[0], 500 in theirs[1]) == (1, True)
    await asyncio.to_thread(naive.wait_for_log, "This session is provisioning a new")
    lost = "The garbage collector is trying to clean up non-checked-in connection"
    async with alone(recipe) as ours_again, alone(naive) as theirs_again:
        async with asyncio.timeout(20):
            while lost not in naive.log:  # what holds it may not have ended
                await theirs_again.get("/collect")
        await ours_again.get("/collect")
    assert lost not in recipe.log


async def test_a_hundred_requests_share_three_connections_unless_they_hold_one(
    recipe: Server, impatient: Server
) -> None:
    async with database(recipe) as connection, alone(recipe) as client:
        answers = await asyncio.gather(*(get(client) for _ in range(100)))
        assert Counter(answers) == {200: 100}
        assert await connection.fetchval(CONNECTIONS) <= 3 + 1  # one of `impatient`
    async with alone(impatient) as client:
        held = await asyncio.gather(*(get(client, "/held") for _ in range(3)))
        assert 503 in held
        assert await get(client) == 200
    await asyncio.to_thread(
        impatient.wait_for_log, "QueuePool limit of size 3 overflow"
    )


async def test_without_a_free_connection_the_answer_is_try_again(
    impatient: Server,
) -> None:
    async with database(impatient) as connection, alone(impatient) as client:
        async with connection.transaction():
            await connection.execute(LOCK)
            first = asyncio.create_task(get(client))
            await until(connection, WAITING, 3)
            second = await client.get("/board")
            assert (second.status_code, second.headers["retry-after"]) == (503, "2")
        assert await first == 200


async def test_a_query_that_fails_cancels_the_others(recipe: Server) -> None:
    async with database(recipe) as connection, alone(recipe) as client:
        await connection.execute("ALTER TABLE board_visits RENAME TO gone")
        async with connection.transaction():
            await connection.execute("LOCK TABLE board_orders, board_reviews")
            assert await get(client) == 500  # not 503: it is no matter of time
            await until(connection, WAITING, 0)  # they no longer wait for the lock
        await connection.execute("ALTER TABLE gone RENAME TO board_visits")
        answers = await asyncio.gather(*(get(client) for _ in range(10)))
        assert set(answers) == {200}


async def test_a_database_that_cannot_be_used_is_503(recipe: Server) -> None:
    faults = ["not found", "slow", "full", "starting", "wrong", "nothing"]

    async with database(recipe) as connection, alone(recipe) as client:

        async def get_with(fault: str) -> int:
            await client.post("/break", params={"how": fault})
            await disconnect_others(connection)
            return await get(client)

        statuses = [await get_with(fault) for fault in faults]
        assert statuses == [503] * 4 + [500, 200]
        async with connection.transaction():
            await connection.execute(LOCK)
            answer = asyncio.create_task(get(client))
            await until(connection, WAITING, 3)
            await disconnect_others(connection)
            assert await answer == 503
        assert await get(client) == 200


async def test_a_database_that_restarts_or_is_gone(
    serve: Serve, new_database: Callable[[], str]
) -> None:
    async with Proxy(await asyncio.to_thread(new_database)) as proxy:
        env = {"DATABASE_URL": proxy.url}
        server = await asyncio.to_thread(lambda: serve(RECIPE, env=env))
        async with alone(server) as client:
            assert await get(client) == 200
            async with database(server) as connection:
                await disconnect_others(connection)
                await until(connection, CONNECTIONS, 0)
            assert await get(client) == 200
            await proxy.cut()
            assert await get(client) == 503
            await proxy.open(proxy.port)
            assert await get(client) == 200
        await asyncio.to_thread(server.stop)


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(sqlalchemy_parallel.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve(RECIPE, env=no_url)
