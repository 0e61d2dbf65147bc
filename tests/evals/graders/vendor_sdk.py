"""A blocking library that hangs must not take the service with it."""

import asyncio
from collections import Counter

import httpx2

from tests.evals.harness import (
    App,
    Asked,
    Grader,
    Reply,
    Upstream,
    check,
    during,
    until,
)

LICENSE = 8
WAITING = 30
PATIENCE = 5.0


class Task(Grader):
    """See `vendor_sdk` in `evals.json`; the symbol says how the vendor behaves."""

    async def setup(self) -> None:
        """The vendor's server, and the file with the terms."""
        self.release = asyncio.Event()
        self.vendor = await self.stack.enter_async_context(Upstream(self._answer))
        self.env["VENDOR_URL"] = self.vendor.url
        terms = self.folder / "terms.txt"
        terms.write_text("our terms\n")
        self.env["TERMS_FILE"] = str(terms)

    async def _answer(self, asked: Asked) -> Reply:
        symbol = asked.path.rpartition("/")[2]
        if symbol.startswith("HANG"):
            await self.release.wait()
        if symbol.startswith("SLOW"):
            await asyncio.sleep(0.15)
        if symbol == "ERROR":
            return Reply(status=500)
        if symbol == "JUNK":
            return Reply(b"<html>")
        return Reply(b'{"price": 12.5}')

    async def quotes(
        self, symbol: str, number: int, app: App | None = None
    ) -> list[int]:
        """Ask many times at once; the statuses."""
        async with (app or self.app).client(timeout=10) as client:
            asking = (client.get(f"/quote/{symbol}") for _ in range(number))
            return [answer.status_code for answer in await asyncio.gather(*asking)]

    async def hang(self) -> None:
        """Let go of what hung before, and let the next calls hang."""
        self.release.set()
        idle = 0
        while idle < 10:  # nothing that still waits in the app comes afterwards
            await asyncio.sleep(0.03)
            idle = 0 if self.vendor.running else idle + 1
        self.release = asyncio.Event()
        self.vendor.reset()

    @check("A price, the health and the terms can be read")
    async def happy(self) -> None:
        async with self.app.client() as client:
            quote = (await client.get("/quote/ABC")).json()
            assert quote == {"symbol": "ABC", "price": 12.5}, f"got {quote}"
            health = (await client.get("/health")).json()
            assert health == {"status": "ok"}, f"got {health}"
            terms = (await client.get("/terms")).text
            assert terms == "our terms\n", f"got {terms!r}"

    @check("If the vendor fails the answer is 502")
    async def failing(self) -> None:
        codes = [(await self.quotes(symbol, 1))[0] for symbol in ("ERROR", "JUNK")]
        assert codes == [502, 502], f"answered with {codes}"

    @check("While the vendor hangs, health and terms are answered", trap=True)
    async def others(self) -> None:
        await self.hang()
        async with during(self.quotes("HANG", 35)) as asking:
            await until(lambda: self.vendor.running, "the vendor is not asked")
            await asyncio.sleep(0.3)
            async with self.app.client(timeout=2.5) as client:
                for path in ("/health", "/terms") * 2:
                    try:
                        status = (await client.get(path)).status_code
                    except httpx2.TimeoutException:
                        raise AssertionError(f"{path} gets no answer") from None
                    assert status == 200, f"{path} is answered with {status}"
            self.release.set()
            await asking

    @check("30 callers are served with never more than 8 calls at once", trap=True)
    async def license(self) -> None:
        await self.hang()
        codes = Counter(await self.quotes("SLOW", 30))
        assert set(codes) == {200}, f"answered with {dict(codes)}"
        most = self.vendor.most
        assert most <= LICENSE, f"{most} calls ran at once"
        assert most > 1, "the calls ran one after the other"

    @check("If the vendor hangs the answer is 504 after some seconds", trap=True)
    async def hanging(self) -> None:
        await self.hang()
        try:
            async with asyncio.timeout(3 + PATIENCE):
                codes = await self.quotes("HANG", 1)
        except TimeoutError:
            raise AssertionError("there is no answer") from None
        assert codes == [504], f"504 expected, got {codes}"

    @check("What exceeds 8 calls and 30 waiting is refused with 503", trap=True)
    async def overload(self) -> None:
        await self.hang()
        codes = Counter(await self.quotes("HANG", 60))
        refused = 60 - LICENSE - WAITING
        expected = f"about {refused} times 503 expected, got {dict(codes)}"
        assert refused - 2 <= codes[503] <= refused + 2, expected
        assert codes[503] + codes[504] == 60, expected

    @check("A call that was given up still counts until the vendor ends it", trap=True)
    async def given_up(self) -> None:
        await self.hang()
        codes = set(await self.quotes("HANG", LICENSE))
        codes |= set(await self.quotes("HANG", 4))
        assert codes <= {503, 504}, f"answered with {codes}"
        most = self.vendor.most
        assert most <= LICENSE, f"{most} calls ran at once"
        await self.hang()
        found = set(await self.quotes("ABC", 8))
        assert found == {200}, f"afterwards it answers {found}"
