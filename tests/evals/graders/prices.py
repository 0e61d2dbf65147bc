"""The first good price of several shops, and no call left running."""

import asyncio
import json
import time
from functools import partial
from typing import Any

from tests.evals.harness import Asked, Grader, Reply, Upstream, check, until

SHOPS = 3
BAD = [
    Reply(b"{}", 500),
    Reply(b'{"detail": "not found"}', 404),
    Reply(b"<html>", content_type="text/html"),
    Reply(b'{"error": "sold out"}'),
    Reply(b'{"price": null}'),
    Reply(b'{"price": "call us"}'),
    Reply(b'{"price": -1}'),
    Reply(b"[]"),
]


def price(amount: float) -> Reply:
    """A shop's answer."""
    return Reply(json.dumps({"price": amount}).encode())


class Task(Grader):
    """See `prices` in `evals.json`; each check says what the shops do."""

    async def setup(self) -> None:
        """Three shops and an address at which nobody listens."""
        self.behavior: list[Any] = [price(1)] * SHOPS
        self.shops: list[Upstream] = []
        for number in range(SHOPS):
            shop = Upstream(partial(self._answer, number))
            self.shops.append(await self.stack.enter_async_context(shop))
        urls = [shop.url for shop in self.shops]
        self.env["PRICE_URLS"] = ",".join([*urls[:1], "http://127.0.0.1:9", *urls[1:]])

    async def _answer(self, number: int, asked: Asked) -> Reply:
        assert asked.path.startswith("/price/")
        behavior: Reply | str | asyncio.Event = self.behavior[number]
        if isinstance(behavior, asyncio.Event):
            await behavior.wait()
            return price(9)
        if behavior == "hang":
            await asyncio.Event().wait()
        if behavior == "drip":
            return Reply(b"{", drip=True)
        if isinstance(behavior, tuple):
            await asyncio.sleep(behavior[0])
            behavior = behavior[1]
        assert isinstance(behavior, Reply)
        return behavior

    async def get(self, *behavior: object) -> tuple[int, Any, float]:
        """Ask for a price: status, JSON, seconds."""
        self.behavior = list(behavior)
        for shop in self.shops:
            shop.reset()
        async with self.app.client(timeout=7) as client:
            started = time.monotonic()
            answer = await client.get("/price/tea")
            seconds = time.monotonic() - started
        return answer.status_code, answer.json(), seconds

    def says(self, amount: float, shop: int) -> tuple[int, Any]:
        """The answer for a price of a shop."""
        return 200, {"price": amount, "from": self.shops[shop].url}

    @check("A price comes with the shop that gave it")
    async def happy(self) -> None:
        found = await self.get(price(4), price(4), price(4))
        expected = [self.says(4, shop) for shop in range(SHOPS)]
        assert found[:2] in expected, f"got {found[:2]}"

    @check("A shop that has not answered is not waited for", trap=True)
    async def first(self) -> None:
        later = asyncio.Event()
        status, told, seconds = await self.get(later, price(12.5), later)
        later.set()
        assert (status, told) == self.says(12.5, 1), f"got {status} {told}"
        assert seconds < 2.5, f"the price took {seconds:.1f} s"

    @check("A bad answer is ignored, however fast it is", trap=True)
    async def bad(self) -> None:
        for reply in BAD:
            found = await self.get(reply, reply, (0.15, price(3)))
            assert found[:2] == self.says(3, 2), f"after {reply.body!r}: {found[:2]}"

    @check("A price of 0 is a price")
    async def zero(self) -> None:
        found = await self.get(price(0), Reply(status=500), Reply(status=500))
        assert found[:2] == self.says(0, 0), f"got {found[:2]}"

    @check("If no shop has a price the answer is 502, as soon as that is known")
    async def none(self) -> None:
        status, _, seconds = await self.get(BAD[0], BAD[1], BAD[4])
        assert status == 502, f"502 expected, got {status}"
        assert seconds < 2.5, f"the answer took {seconds:.1f} s"

    @check("If no shop answers in time the answer is 504", trap=True)
    async def late(self) -> None:
        status, _, seconds = await self.get("hang", BAD[0], "drip")
        assert status == 504, f"504 expected, got {status}"
        assert seconds < 6, f"the answer took {seconds:.1f} s"

    @check("Once there is a price no other call is left open", trap=True)
    async def losers(self) -> None:
        found = await self.get("hang", "hang", (0.3, price(2)))
        assert found[:2] == self.says(2, 2), f"got {found[:2]}"
        await until(
            lambda: not any(shop.running for shop in self.shops),
            "a call is still open",
            2.5,
        )

    @check("40 customers at once all get a price")
    async def crowd(self) -> None:
        self.behavior = ["hang", (0.2, price(7)), (0.1, Reply(status=503))]
        async with self.app.client() as client:
            asking = (client.get(f"/price/{number}") for number in range(40))
            answers = await asyncio.gather(*asking)
        codes = {answer.status_code for answer in answers}
        assert codes == {200}, f"answered with {codes}"
