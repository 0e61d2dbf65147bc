"""Money that moves once, whoever asks at the same time."""

import asyncio
import uuid
from typing import Any, ClassVar

import httpx2

from tests.evals.harness import Grader, check, execute, fetch

ACCOUNTS = "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL)"
TRANSFERS = """
CREATE TABLE transfers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    idempotency_key text NOT NULL UNIQUE,
    source bigint NOT NULL,
    target bigint NOT NULL,
    amount bigint NOT NULL
)"""


class Task(Grader):
    """See `transfers` in `evals.json`."""

    needs: ClassVar = ("DATABASE_URL",)

    async def setup(self) -> None:
        """The tables of the prompt, and accounts, two for each check."""
        rows = "INSERT INTO accounts SELECT n, 1000 FROM generate_series(1, 20) n"
        await execute(self.database, ACCOUNTS, TRANSFERS, rows)

    async def balances(self, *accounts: int) -> list[int]:
        """What the accounts hold."""
        query = "SELECT balance FROM accounts WHERE id = ANY($1) ORDER BY id"
        return [row["balance"] for row in await fetch(self.database, query, accounts)]

    async def move(
        self,
        client: httpx2.AsyncClient,
        source: object,
        target: object,
        amount: object,
        key: str | None = None,
    ) -> httpx2.Response:
        """Ask for a transfer, with a key of its own by default."""
        body = {"source": source, "target": target, "amount": amount}
        headers = {"Idempotency-Key": uuid.uuid4().hex if key is None else key}
        return await client.post("/transfers", json=body, headers=headers)

    async def crowd(self, *moves: tuple[Any, ...]) -> list[httpx2.Response]:
        """Ask for many transfers at once."""
        async with self.app.client() as client:
            return await asyncio.gather(*(self.move(client, *one) for one in moves))

    @check("A transfer moves money, and both accounts can be read")
    async def happy(self) -> None:
        async with self.app.client() as client:
            moved = await self.move(client, 1, 2, 300)
            assert moved.status_code == 201, f"201 expected, got {moved.status_code}"
            told = {"source": 1, "target": 2, "amount": 300}
            assert moved.json().items() >= told.items(), f"got {moved.text}"
            for account, balance in ((1, 700), (2, 1300)):
                read = (await client.get(f"/accounts/{account}")).json()
                assert read == {"id": account, "balance": balance}, f"got {read}"

    @check("A bad transfer is answered with 422 and moves nothing")
    async def bad(self) -> None:
        async with self.app.client() as client:
            bad = [(3, 4, 0), (3, 4, -5), (3, 3, 5), (3, 4, "much"), (3, 4, 10**30)]
            for one in bad:
                status = (await self.move(client, *one)).status_code
                assert status == 422, f"{one} is answered with {status}"
            body = {"source": 3, "target": 4, "amount": 5}
            status = (await client.post("/transfers", json=body)).status_code
            assert status == 422, f"without a key it is {status}"
        assert await self.balances(3, 4) == [1000, 1000], "money has moved"

    @check("An unknown account is answered with 404 and moves nothing")
    async def unknown(self) -> None:
        async with self.app.client() as client:
            codes = [
                (await self.move(client, 3, 999, 5)).status_code,
                (await self.move(client, 999, 3, 5)).status_code,
                (await client.get("/accounts/999")).status_code,
            ]
        assert codes == [404] * 3, f"404 expected, got {codes}"
        assert await self.balances(3) == [1000], "money has moved"

    @check("Without enough money it is 402, and the key can be used again")
    async def poor(self) -> None:
        key = uuid.uuid4().hex
        async with self.app.client() as client:
            status = (await self.move(client, 5, 6, 1001, key)).status_code
            assert status == 402, f"402 expected, got {status}"
            await self.move(client, 6, 5, 1)
            status = (await self.move(client, 5, 6, 1001, key)).status_code
            assert status == 201, f"with enough money it is {status}"
        assert await self.balances(5, 6) == [0, 2000], "other amounts have moved"

    @check("A request that is repeated later gets the same answer")
    async def repeated(self) -> None:
        key = uuid.uuid4().hex
        async with self.app.client() as client:
            first = await self.move(client, 7, 8, 10, key)
            second = await self.move(client, 7, 8, 10, key)
            other = await self.move(client, 7, 8, 11, key)
        assert (first.status_code, second.status_code) == (201, 201), (
            f"got {first.status_code} and {second.status_code}"
        )
        assert first.json() == second.json(), "the answers differ"
        assert other.status_code == 409, f"another body gives {other.status_code}"
        assert await self.balances(7, 8) == [990, 1010], "money has moved twice"

    @check("A request that is repeated at the same time moves money once", trap=True)
    async def repeated_at_once(self) -> None:
        answers = await self.crowd(*[(9, 10, 10, "same-key")] * 15)
        codes = {answer.status_code for answer in answers}
        assert codes == {201}, f"answered with {codes}"
        assert len({answer.text for answer in answers}) == 1, "the answers differ"
        balances = await self.balances(9, 10)
        assert balances == [990, 1010], f"the accounts hold {balances}"

    @check("An account that many draw on at once is not overdrawn", trap=True)
    async def overdraft(self) -> None:
        answers = await self.crowd(*[(11, 12, 100)] * 40)
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [201] * 10 + [402] * 30, f"{codes.count(201)} of 10 succeed"
        balances = await self.balances(11, 12)
        assert balances == [0, 2000], f"the accounts hold {balances}"

    @check("Transfers that cross each other all succeed", trap=True)
    async def crossing(self) -> None:
        answers = await self.crowd(*[(13, 14, 1), (14, 13, 1)] * 40)
        codes = {answer.status_code for answer in answers}
        assert codes == {201}, f"answered with {codes}"
        balances = await self.balances(13, 14)
        assert balances == [1000, 1000], f"the accounts hold {balances}"
