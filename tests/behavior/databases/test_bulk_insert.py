"""databases/bulk_insert: thousands of rows, bounded, and conflicts have an answer."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from recipes.databases import bulk_insert
from recipes.databases.bulk_insert import MAX_BYTES, MAX_ROWS, NO_URL
from tests.behavior.databases.postgres import (
    OTHERS,
    database,
    execute,
    shared_servers,
    until,
)
from tests.conftest import Serve
from tests.harness.server import Server, run_script

RECIPE = "recipes.databases.bulk_insert"
NAIVE = "tests.behavior.databases.warned_bulk_insert:naive"
COUNT = "SELECT count(*) FROM devices"
WAITING = f"SELECT count(*) {OTHERS} AND wait_event_type = 'Lock'"  # for a row
# Numbers the statements of the app: one for each, however many rows it has.
COUNTING = """
    CREATE SEQUENCE statements;
    CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM nextval(''statements''); RETURN NULL; END';
    CREATE TRIGGER counted AFTER INSERT ON devices EXECUTE FUNCTION counted()
"""
# A deadlock is found after a tenth of the usual second.
QUICK = """
    DO 'BEGIN EXECUTE format(''ALTER DATABASE %I SET deadlock_timeout = 100'',
        current_database()); END'
"""
FRESH = """
    DROP FUNCTION IF EXISTS counted CASCADE;
    DROP SEQUENCE IF EXISTS statements;
    ALTER TABLE devices DROP CONSTRAINT IF EXISTS devices_serial_check;
    TRUNCATE devices
"""


@pytest.fixture(scope="module")
def shared(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("bulk_insert")
    with shared_servers(postgres_url, folder, QUICK, RECIPE, NAIVE) as servers:
        yield servers


def fresh(server: Server) -> Server:
    """`server` with an empty table."""
    asyncio.run(execute(server.options.env["DATABASE_URL"], FRESH))
    return server


@pytest.fixture
def recipe(shared: list[Server]) -> Server:
    return fresh(shared[0])


@pytest.fixture
def naive(shared: list[Server]) -> Server:
    return fresh(shared[1])


def devices(*serials: str) -> list[dict[str, str]]:
    return [{"serial": serial, "model": "lamp"} for serial in serials]


def many(count: int) -> list[dict[str, str]]:
    return devices(*(f"A-{number:05}" for number in range(count)))


def alone(server: Server) -> httpx2.AsyncClient:
    """A client with a connection for each request: uvicorn closes it after a 500."""
    return server.client(headers={"Connection": "close"}, timeout=60)


async def add(client: httpx2.AsyncClient, batch: Any) -> httpx2.Response:
    return await client.post("/devices", json=batch)


async def status_of_a_body_of(size: int, server: Server) -> bytes:
    """Without the body: while it is sent, a client may only see a closed socket."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = b"POST /devices HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(head + b"Content-Length: %d\r\n\r\n" % size)
    status = (await reader.readline()).split()[1]
    writer.close()
    await writer.wait_closed()
    return status


@pytest.mark.defect("D102", "D103", "D104", "D105")
async def test_conflicts_are_answered_and_the_size_is_bounded(
    recipe: Server, naive: Server
) -> None:
    async with alone(recipe) as client, database(recipe) as connection:
        await connection.execute(COUNTING)
        assert (await add(client, many(2))).json() == {"created": 2, "taken": []}
        assert (await add(client, many(MAX_ROWS))).json() == {
            "created": MAX_ROWS - 2,
            "taken": ["A-00000", "A-00001"],
        }
        assert await connection.fetchval("SELECT last_value FROM statements") == 1 + 5
        again = await add(client, many(1500))  # its response got lost
        assert (again.json()["created"], len(again.json()["taken"])) == (0, 1500)
        assert (await add(client, many(MAX_ROWS + 1))).status_code == 422
        assert await connection.fetchval(COUNT) == MAX_ROWS
        assert "secret" not in again.text

    async with alone(naive) as client, database(naive) as connection:
        answer = await add(client, many(2))
        assert "secret_hash" in answer.json()[0]
        assert (await add(client, devices("A-00001", "A-00002"))).status_code == 500
        await until(connection, COUNT, 2)  # it commits after its response
        assert (await add(client, many(MAX_ROWS + 3)[2:])).status_code == 200
    await asyncio.to_thread(naive.wait_for_log, "The `dict` method is deprecated")
    await asyncio.to_thread(naive.wait_for_log, "duplicate key value violates unique")


async def test_a_422_is_short_whatever_the_body(recipe: Server, naive: Server) -> None:
    flood = [1] * 30_000
    async with alone(recipe) as client, alone(naive) as careless:
        size = len(json.dumps(flood))
        refused = await add(careless, flood)
        assert (refused.status_code, len(refused.content) > 30 * size) == (422, True)
        bad: list[object] = [
            flood, many(MAX_ROWS + 1), [], {}, None, "x", [{}], [[]], [None],
            devices("a"), devices(""), devices("A\n"), devices("A\0"),
            devices("A" * 41), devices("A" * 900_000), {"A" * 900_000: 1},
            [{"serial": "A", "model": "Ä"}], devices("A", "A"),
        ]  # fmt: skip
        for body in bad:
            answer = await add(client, body)
            assert answer.status_code == 422
            assert len(answer.content) < 200
        for raw in b"[NaN]", b'[{"serial": NaN}]', rb'[{"serial": "\ud800"}]', b"[":
            answer = await client.post(
                "/devices", content=raw, headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == 422
        named = await add(client, [*devices("A"), 2, 3])
        [error] = named.json()["detail"]
        assert (error["loc"], sorted(error)) == (["body", 1], ["loc", "msg", "type"])
        assert await status_of_a_body_of(MAX_BYTES + 1, recipe) == b"413"
        assert (await add(client, devices("A"))).json() == {"created": 1, "taken": []}


async def test_two_batches_with_the_same_rows_do_not_deadlock(
    recipe: Server, naive: Server
) -> None:
    async def heard(server: Server) -> list[int]:
        """Both are stopped in their middle by a row that is not committed."""
        async with (
            database(server) as connection,
            database(server) as other,
            alone(server) as client,
        ):
            middle = other.transaction()
            await middle.start()
            await other.execute("INSERT INTO devices VALUES ('M', 'lamp')")
            batches = devices("A", "M", "Z"), devices("Z", "M", "A")
            tasks = [asyncio.create_task(add(client, batch)) for batch in batches]
            await until(connection, WAITING, 2)
            await middle.rollback()
            answers = await asyncio.gather(*tasks)
            await until(connection, COUNT, 3)  # the naive form commits late
            if server is recipe:
                reports = [answer.json() for answer in answers]
                assert sorted(one["created"] for one in reports) == [0, 3]
                assert ["A", "M", "Z"] in [one["taken"] for one in reports]
            return sorted(answer.status_code for answer in answers)

    ours, theirs = await asyncio.gather(heard(recipe), heard(naive))
    assert ours == [200, 200]
    assert theirs == [200, 500]
    await asyncio.to_thread(naive.wait_for_log, "deadlock detected")


async def test_an_error_in_the_last_statement_leaves_no_row(recipe: Server) -> None:
    async with database(recipe) as connection, alone(recipe) as client:
        await connection.execute("ALTER TABLE devices ADD CHECK (serial < 'Z')")
        batch = many(2500) + devices("Z")
        assert (await add(client, batch)).status_code == 500
        assert await connection.fetchval(COUNT) == 0
        assert (await add(client, batch[:-1])).json()["created"] == 2500


async def test_an_update_cannot_take_a_row_twice(recipe: Server) -> None:
    twice = """
        INSERT INTO devices VALUES ('A', 'lamp'), ('A', 'fan')
        ON CONFLICT (serial) DO UPDATE SET model = excluded.model
    """
    message = "ON CONFLICT DO UPDATE command cannot affect row a second time"
    async with database(recipe) as connection:
        with pytest.raises(asyncpg.CardinalityViolationError, match=message):
            await connection.execute(twice)


def test_it_starts_again_on_the_same_database(recipe: Server, serve: Serve) -> None:
    server = serve(RECIPE, env=recipe.options.env)
    answer = httpx2.post(f"{server.url}/devices", json=devices("A"))
    assert answer.json() == {"created": 1, "taken": []}


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(bulk_insert.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve(RECIPE, env=no_url)
