"""An export that is one moment of the table, in little memory, for slow readers."""

import asyncio
import contextlib
import csv
import io
from collections.abc import AsyncIterator
from typing import ClassVar

import httpx2

from tests.evals.harness import App, Grader, check, execute, until

ROWS = 12_000
MANY = 80_000
WIDE = 1000
AT_ONCE = 3
CREATE = "CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL, note text)"
ODD = [
    (1, "Zoë, 'Z'", 'says "hi"'),
    (2, "two\nlines", None),
    (3, "日本 🎉", "semi;colon"),
]
FORMULAS = ["=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]


class Task(Grader):
    """See `csv_export` in `evals.json`."""

    needs: ClassVar = ("DATABASE_URL",)

    async def setup(self) -> None:
        """Some odd customers, some dangerous ones, and many wide ones."""
        await execute(self.database, CREATE, fill(101, ROWS + 100))
        formulas = [(10 + n, text, text) for n, text in enumerate(FORMULAS)]
        import asyncpg

        connection = await asyncpg.connect(self.database)
        try:
            await connection.copy_records_to_table("customers", records=ODD + formulas)
        finally:
            await connection.close()

    @check("The export holds every customer, in order, exactly as stored")
    async def happy(self) -> None:
        async with opened(self.app) as response:
            kind = response.headers.get("content-type", "")
            assert kind.startswith("text/csv"), f"it is {kind}"
            disposition = response.headers.get("content-disposition", "")
            right = "attachment" in disposition and "customers.csv" in disposition
            assert right, f"Content-Disposition is {disposition!r}"
            rows = parse(await response.aread())
        assert rows[0] == ["id", "name", "note"], f"the first row is {rows[0]}"
        expected = [[str(n), name, note or ""] for n, name, note in ODD]
        assert rows[1:4] == expected, f"the next rows are {rows[1:4]}"
        numbers = [int(row[0]) for row in rows[1:]]
        assert numbers == sorted(numbers), "the rows are not in order"
        wanted = ROWS + len(ODD) + len(FORMULAS)
        assert len(numbers) == wanted, f"{len(numbers)} of {wanted} rows are there"

    @check("No cell is run as a formula by Excel", trap=True)
    async def formulas(self) -> None:
        body = b""
        async with opened(self.app) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > 10 * WIDE:
                    break
        rows = {int(row[0]): row[1:] for row in parse(body, partly=True)[1:-1]}
        for number, text in enumerate(FORMULAS, 10):
            for cell in rows[number]:
                safe = not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
                assert safe, f"a cell is {cell!r}"
                assert text.strip() in cell, f"{text!r} became {cell!r}"

    @check("What changes meanwhile is not in the export", trap=True)
    async def moment(self) -> None:
        async with opened(self.app) as response:
            chunks = response.aiter_bytes()
            body = bytearray(await anext(chunks))
            await execute(
                self.database,
                "DELETE FROM customers WHERE id BETWEEN 101 AND 200",
                "UPDATE customers SET name = 'changed' WHERE id > 11900",
                "INSERT INTO customers VALUES (50, 'new', ''), (999999, 'new', '')",
            )
            async for chunk in chunks:
                body += chunk
        rows = parse(bytes(body))
        numbers = [int(row[0]) for row in rows[1:] if int(row[0]) > 100]
        await execute(
            self.database,
            "DELETE FROM customers WHERE id = 50 OR id > 11900",
            fill(101, ROWS + 100),
        )
        expected = list(range(101, ROWS + 101))
        if numbers != expected:
            missing = len(set(expected) - set(numbers))
            twice = len(numbers) - len(set(numbers))
            raise AssertionError(f"{missing} rows are missing, {twice} are there twice")
        assert not any(row[1] in {"changed", "new"} for row in rows), "it has new rows"

    @check("An export that breaks does not look complete")
    async def broken(self) -> None:
        try:
            async with opened(self.app) as response:
                chunks = response.aiter_bytes()
                await anext(chunks)
                await execute(
                    self.database,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                    "datname = current_database() AND pid <> pg_backend_pid()",
                )
                rest = [chunk async for chunk in chunks]
        except httpx2.TransportError:
            return
        if sum(map(len, rest)) < ROWS * WIDE // 2:
            raise AssertionError("it ends as if it were complete")

    @check("Three slow readers keep a fourth away with 503, and nobody else", trap=True)
    async def slow(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(AT_ONCE):
                await stack.enter_async_context(opened(self.app))
            async with self.app.client() as client:
                status = (await client.get("/customers.csv")).status_code
                assert status == 503, f"the fourth is answered with {status}"
                for _ in range(5):
                    answer = await client.get("/customers/count")
                    assert answer.status_code == 200, f"the count gives {answer}"
        free = asyncio.create_task(self._free())
        await until(free.done, "when they have left there is still no place", 8)
        await free

    async def _free(self) -> None:
        while True:
            async with self.app.client() as client:
                async with client.stream("GET", "/customers.csv") as response:
                    if response.status_code == 200:
                        return
            await asyncio.sleep(0.1)

    @check("The export does not pass through memory as a whole")
    async def memory(self) -> None:
        await execute(self.database, fill(ROWS + 101, MANY))
        app = await self.start()
        async with app.client() as client:
            await client.get("/customers/count")
        before = app.memory()
        async with opened(app) as response:
            chunks = response.aiter_bytes(100_000)
            most = max([app.memory() - before async for _ in first(chunks, 20)])
        size = MANY * WIDE
        message = f"for {size >> 20} MiB it takes {most >> 20} MiB"
        assert most < size * 0.8, message  # all rows in a list take more than size


async def first(chunks: AsyncIterator[bytes], number: int) -> AsyncIterator[bytes]:
    """That many chunks."""
    for _ in range(number):
        yield await anext(chunks)


def fill(first: int, last: int) -> str:
    """The statement that adds these rows, where they are missing."""
    rows = f"SELECT n, 'customer ' || n, repeat('x', {WIDE}) FROM generate_series"  # noqa: S608 - ours
    return f"INSERT INTO customers {rows}({first}, {last}) n ON CONFLICT DO NOTHING"


def parse(body: bytes, *, partly: bool = False) -> list[list[str]]:
    """The rows of a CSV file."""
    decoded = body.decode("utf-8-sig", "ignore" if partly else "strict")
    text = io.StringIO(decoded, newline="")
    return list(csv.reader(text))


@contextlib.asynccontextmanager
async def opened(app: App) -> AsyncIterator[httpx2.Response]:
    """An export of which only the head has been read."""
    async with app.client(timeout=12) as client:
        async with client.stream("GET", "/customers.csv") as response:
            assert response.status_code == 200, f"got {response.status_code}"
            yield response
