"""Orders: what the client is told is what the database holds."""

import asyncio
import contextlib
from typing import Any, ClassVar

import httpx2

from tests.evals.harness import Grader, check, execute, fetch

TABLE = """
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reference text NOT NULL,
    amount integer NOT NULL,
    CONSTRAINT orders_reference UNIQUE (reference) DEFERRABLE INITIALLY DEFERRED
)"""
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON orders
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
WHEN (NEW.reference LIKE 'slow%') EXECUTE FUNCTION slow()"""
BAD: list[Any] = [
    {"reference": "", "amount": 1},
    {"reference": "x" * 41, "amount": 1},
    {"reference": "bad-1", "amount": 0},
    {"reference": "bad-2", "amount": 1_000_001},
    {"reference": "bad-3"},
    [],
]


class Task(Grader):
    """See `orders` in `evals.json`."""

    needs: ClassVar = ("DATABASE_URL",)

    async def setup(self) -> None:
        """The table of the prompt; a commit is slow for references of `slow`."""
        await execute(self.database, TABLE, SLOW)

    async def stored(self, like: str) -> int:
        """How many orders have such a reference."""
        query = "SELECT count(*) AS n FROM orders WHERE reference LIKE $1"
        count: int = (await fetch(self.database, query, like))[0]["n"]
        return count

    @check("An order is stored and can be read by its id")
    async def happy(self) -> None:
        async with self.app.client() as client:
            order = {"reference": "A-1", "amount": 1250}
            made = await client.post("/orders", json=order)
            assert made.status_code == 201, f"201 expected, got {made.status_code}"
            assert made.json().items() >= order.items(), f"got {made.text}"
            read = await client.get(f"/orders/{made.json()['id']}")
            assert (read.status_code, read.json()) == (200, made.json()), read.text

    @check("A bad order is answered with 422 and stores nothing")
    async def bad(self) -> None:
        async with self.app.client() as client:
            for order in BAD:
                status = (await client.post("/orders", json=order)).status_code
                assert status == 422, f"{order} was answered with {status}"
        assert await self.stored("bad%") == 0, "a bad order is stored"

    @check("An unknown id is not found, however large it is")
    async def unknown(self) -> None:
        async with self.app.client() as client:
            status = (await client.get("/orders/999999")).status_code
            assert status == 404, f"404 expected, got {status}"
            status = (await client.get(f"/orders/{10**25}")).status_code
            assert 400 <= status < 500, f"an id of 26 digits is answered with {status}"

    @check("A reference that is taken is answered with 409", trap=True)
    async def duplicate(self) -> None:
        async with self.app.client() as client:
            order = {"reference": "twice", "amount": 1}
            answers = [await client.post("/orders", json=order) for _ in range(2)]
            codes = [answer.status_code for answer in answers]
            assert codes == [201, 409], f"the same order twice is answered with {codes}"

    @check("Of 20 equal orders at once exactly one is accepted", trap=True)
    async def concurrent_duplicates(self) -> None:
        async with self.app.client() as client:
            order = {"reference": "race", "amount": 1}
            posts = (client.post("/orders", json=order) for _ in range(20))
            codes = [answer.status_code for answer in await asyncio.gather(*posts)]
        others = {code for code in codes if code != 201}
        assert codes.count(201) == 1, f"{codes.count(201)} are accepted"
        assert others == {409}, f"the others are answered with {others}"

    @check("An order can be read as soon as the 201 is there", trap=True)
    async def read_your_write(self) -> None:
        async with self.app.client() as client:
            for number in range(2):
                order = {"reference": f"slow-{number}", "amount": 1}
                made = await client.post("/orders", json=order)
                assert made.status_code == 201, f"got {made.status_code}"
                read = await client.get(f"/orders/{made.json()['id']}")
                assert read.status_code == 200, f"201, then {read.status_code}"

    @check("60 orders at once are stored, also after 60 that were refused")
    async def load(self) -> None:
        async with self.app.client() as client:
            await client.post("/orders", json={"reference": "refused", "amount": 1})

            async def post(reference: str) -> int:
                order = {"reference": reference, "amount": 1}
                return (await client.post("/orders", json=order)).status_code

            await asyncio.gather(*(post("refused") for _ in range(60)))
            codes = await asyncio.gather(*(post(f"load-{n}") for n in range(60)))
        assert set(codes) == {201}, f"answered with {sorted(set(codes))}"
        assert await self.stored("load-%") == 60, "not all of them are stored"

    @check("It recovers after the database has closed its connections")
    async def reconnect(self) -> None:
        await execute(
            self.database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        codes = []
        for number in range(20):
            order = {"reference": f"again-{number}", "amount": 1}
            with contextlib.suppress(httpx2.TransportError):
                async with self.app.client() as client:
                    answer = await client.post("/orders", json=order)
                    codes.append(answer.status_code)
            if codes[-3:] == [201, 201, 201]:
                return
        raise AssertionError(f"afterwards it answers {codes}")
