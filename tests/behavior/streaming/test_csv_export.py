"""streaming/csv_export: each row once, formulas as text, and no error behind a 200."""

import asyncio
import csv
import io
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from recipes.streaming import csv_export
from recipes.streaming.csv_export import NO_URL
from tests.behavior.databases.postgres import (
    OTHERS,
    WAITING,
    database,
    disconnect_others,
    execute,
    shared_servers,
    until,
)
from tests.conftest import Serve
from tests.harness.server import Server, run_script

FOLDER = "tests.behavior.streaming"
TABLE = """
    CREATE TABLE IF NOT EXISTS survey_answers (
        id int PRIMARY KEY, author text, answer text, score int);
    TRUNCATE survey_answers
"""
# 250 rows of 60 kB: a page of a hundred is more than the sockets' buffers hold.
BIG = """
    INSERT INTO survey_answers
    SELECT n, 'Ada', repeat('x', 60000), -n FROM generate_series(1, 250) AS n
"""
OPEN = f"SELECT count(*) {OTHERS} AND state LIKE 'idle in transaction%'"
# The first batch is read at once, the second when a lock is released.
HELD = """
    ALTER TABLE survey_answers RENAME TO everything;
    CREATE FUNCTION passes(int) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN
        IF $1 > 150 THEN PERFORM pg_advisory_xact_lock(42); END IF; RETURN true; END';
    CREATE VIEW survey_answers AS SELECT * FROM everything WHERE passes(id);
    DO 'BEGIN EXECUTE format(''ALTER DATABASE %I SET enable_sort = off'',
        current_database()); END';
    SELECT pg_advisory_lock(42)
"""
FREE = """
    SELECT pg_advisory_unlock_all();
    DROP VIEW survey_answers;
    DROP FUNCTION passes;
    ALTER TABLE everything RENAME TO survey_answers
"""
Start = Callable[..., Awaitable[Server]]


@pytest.fixture(scope="module")
def shared(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """Servers, each with a database of its own."""
    folder = tmp_path_factory.mktemp("csv_export")
    names = "small_csv_export", "naive_csv_export", "naive_csv_export_cursor"
    targets = [f"{FOLDER}.{name}" for name in names]
    with shared_servers(postgres_url, folder, TABLE, *targets) as servers:
        yield dict(zip(names, servers, strict=True))


@pytest.fixture
def start(shared: dict[str, Server], serve: Serve) -> Start:
    """A server for a module, its database with 250 big rows; its own with options."""

    async def start(name: str, **options: Any) -> Server:
        server = shared[name]
        await execute(server.options.env["DATABASE_URL"], TABLE + ";" + BIG)
        if not options:
            return server
        seconds = str(options.pop("seconds", 60))
        env = server.options.env | {"EXPORT_SECONDS": seconds}
        target = server.options.target
        return await asyncio.to_thread(
            lambda: serve(target, env=env, strict=not options, **options)
        )

    return start


@asynccontextmanager
async def exporting(server: Server) -> AsyncIterator[httpx2.Response]:
    """A client that has the headers, and does not read on."""
    async with server.client() as client:
        async with client.stream("GET", "/answers.csv") as response:
            yield response


async def rows(response: httpx2.Response) -> list[list[str]]:
    content = (await response.aread()).decode("utf-8-sig")
    return list(csv.reader(io.StringIO(content, newline="")))[1:]


async def get(server: Server, path: str = "/answers.csv") -> httpx2.Response:
    async with server.client() as client:
        return await client.get(path)


@pytest.mark.defect("D65", "D66")
async def test_what_others_write_meanwhile_changes_nothing(start: Start) -> None:
    recipe, naive = await start("small_csv_export"), await start("naive_csv_export")

    async def ids(server: Server, command: str) -> list[int]:
        """What an export of ids 1 to 250 has; `command` runs during its first page."""
        async with database(server) as connection:
            await connection.execute(TABLE + ";" + BIG)
            async with exporting(server) as response:
                parts = response.aiter_text()
                text = ""
                while len(text) < 1000:  # more than the header
                    text += await anext(parts)
                await connection.execute(command)
                text += "".join([part async for part in parts])
            return [int(row[0]) for row in list(csv.reader(io.StringIO(text)))[1:]]

    delete = "DELETE FROM survey_answers WHERE id = 50"
    insert = "INSERT INTO survey_answers VALUES (0, 'Bob', 'x', 1)"
    everyone = list(range(1, 251))
    assert await ids(recipe, delete) == everyone
    assert await ids(recipe, insert) == everyone
    assert await ids(naive, delete) == [n for n in everyone if n != 101]
    assert await ids(naive, insert) == sorted([*everyone, 100])


@pytest.mark.defect("D67")
async def test_text_is_no_formula_and_a_number_is_a_number(start: Start) -> None:
    recipe, naive = await start("small_csv_export"), await start("naive_csv_export")
    formulas = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]
    harmless = ["a=b", " ", "", 'a "quote", and\nlines\r\n', "é😀", "'x", "NULL", None]

    async def answers(server: Server) -> list[str]:
        async with database(server) as connection:
            await connection.execute(TABLE)
            await connection.executemany(
                "INSERT INTO survey_answers VALUES ($1, $2, $2, -7)",
                list(enumerate(formulas + harmless)),
            )
        found = await rows(await get(server))
        assert {row[3] for row in found} == {"-7"}
        assert [row[1] for row in found] == [row[2] for row in found]
        return [row[2] for row in found]

    as_they_are = [text or "" for text in harmless]
    assert await answers(recipe) == [f"'{text}" for text in formulas] + as_they_are
    assert await answers(naive) == formulas + as_they_are


@pytest.mark.defect("D68")
async def test_a_chunk_is_a_batch(start: Start) -> None:
    recipe, naive = await start("small_csv_export"), await start("naive_csv_export")

    def chunks(server: Server) -> int:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET /answers.csv HTTP/1.1\r\nHost: x\r\n\r\n")
            stream = client.makefile("rb")
            while stream.readline() != b"\r\n":
                pass
            count = 0
            while size := int(stream.readline(), 16):
                stream.read(size + 2)
                count += 1
            return count

    assert await asyncio.to_thread(chunks, recipe) == 1 + 3
    assert await asyncio.to_thread(chunks, naive) == 1 + 250


@pytest.mark.defect("D69")
async def test_an_early_error_is_a_500_and_a_late_one_cuts_the_response(
    start: Start,
) -> None:
    recipe, naive = await start("small_csv_export"), await start("naive_csv_export")
    cut = "incomplete chunked read"
    async with database(recipe) as connection, exporting(recipe) as response:
        await disconnect_others(connection)
        assert response.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError, match=cut):
            await response.aread()
    for server in recipe, naive:
        async with database(server) as connection:
            await connection.execute("ALTER TABLE survey_answers RENAME TO gone")
    assert (await get(recipe)).status_code == 500
    async with exporting(naive) as response:
        assert response.status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError, match=cut):
            await response.aread()
    for server in recipe, naive:
        async with database(server) as connection:
            await connection.execute("ALTER TABLE gone RENAME TO survey_answers")


async def test_clients_that_do_not_read_take_only_the_exports(start: Start) -> None:
    recipe = await start("small_csv_export")
    naive = await start("naive_csv_export_cursor")
    async with exporting(recipe), exporting(recipe):
        third = await get(recipe)
        assert (third.status_code, third.headers["retry-after"]) == (503, "30")
        assert (await get(recipe, "/count")).json() == 250
        async with database(recipe) as connection:
            await until(connection, OPEN, 2)  # each has read a batch, and waits
    async with database(recipe) as connection:
        await until(connection, OPEN, 0)
    assert len(await rows(await get(recipe))) == 250

    async with naive.client() as client:
        for _ in range(4):
            stalled = client.build_request("GET", "/answers.csv")
            await client.send(stalled, stream=True)
        async with database(naive) as connection:
            await until(connection, OPEN, 4)
        count = asyncio.create_task(get(naive, "/count"))
        for _ in range(20):
            assert (await get(naive, "/docs")).status_code == 200
        assert not count.done()
    assert (await count).json() == 250


async def test_a_client_that_does_not_read_loses_its_snapshot(start: Start) -> None:
    recipe = await start("small_csv_export", seconds=0.5)
    naive = await start("naive_csv_export_cursor")
    async with database(naive) as theirs, database(recipe) as ours:
        async with exporting(naive), exporting(recipe) as response:
            await until(theirs, OPEN, 1)
            await asyncio.to_thread(recipe.wait_for_log, "TimeoutError")
            await until(ours, OPEN, 0)
            assert await theirs.fetchval(OPEN) == 1
            with pytest.raises(httpx2.RemoteProtocolError):
                await response.aread()
        async with exporting(recipe) as response:
            assert response.status_code == 200


async def test_a_client_that_leaves_frees_its_slot_also_while_a_batch_is_read(
    start: Start,
) -> None:
    recipe = await start("small_csv_export")
    async with database(recipe) as connection:
        async with exporting(recipe), exporting(recipe):
            await until(connection, OPEN, 2)
        await until(connection, OPEN, 0)
        await connection.execute("UPDATE survey_answers SET answer = 'small'")
        await connection.execute(HELD)
        await disconnect_others(connection)  # so that the next ones do not sort
        async with exporting(recipe), exporting(recipe):
            await until(connection, WAITING, 2)
        await until(connection, WAITING, 0)
        await connection.execute(FREE)
    assert len(await rows(await get(recipe))) == 250


async def test_an_open_export_holds_up_a_stop_for_the_grace_period(
    start: Start,
) -> None:
    server = await start("small_csv_export", timeout_graceful_shutdown=1)
    async with database(server) as connection:
        async with exporting(server) as response:
            await until(connection, OPEN)
            server.terminate()
            assert await asyncio.to_thread(server.wait) == -15
            with pytest.raises(httpx2.RemoteProtocolError):
                await response.aread()
        await until(connection, OPEN, 0)


async def test_an_empty_table_is_a_header(start: Start) -> None:
    recipe = await start("small_csv_export")
    async with database(recipe) as connection:
        await connection.execute(TABLE)
    response = await get(recipe)
    assert response.content == b"\xef\xbb\xbfid,author,answer,score\r\n"
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in response.headers["content-disposition"]


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(csv_export.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve("recipes.streaming.csv_export", env=no_url)
