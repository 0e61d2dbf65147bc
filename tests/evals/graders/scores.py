"""An expensive answer that is fetched once for everybody."""

import asyncio
import json
from collections import Counter
from typing import ClassVar
from urllib.parse import unquote

import httpx2
import redis.asyncio

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

FALSY: dict[str, object] = {
    "zero": 0,
    "false": False,
    "null": None,
    "empty": [],
    "blank": "",
}


class Task(Grader):
    """See `scores` in `evals.json`; the name of a player says what happens."""

    needs: ClassVar = ("REDIS_URL",)

    async def setup(self) -> None:
        """The service that costs money."""
        self.release = asyncio.Event()
        self.broken = True
        self.service = await self.stack.enter_async_context(Upstream(self._answer))
        self.env["SCORES_URL"] = self.service.url

    async def _answer(self, asked: Asked) -> Reply:
        player = unquote(asked.path.rpartition("/")[2])
        if player.startswith("slow"):
            await self.release.wait()
        if player.startswith("crowd"):
            await asyncio.sleep(0.5)
        if player == "broken" and self.broken:
            return Reply(status=500)
        if player == "unknown":
            return Reply(status=404)
        return Reply(json.dumps(FALSY.get(player, 42)).encode())

    def calls(self) -> Counter[str]:
        """How often the service was asked, by player."""
        return Counter(asked.path.rpartition("/")[2] for asked in self.service.calls)

    async def get(
        self, player: str, app: App | None = None, seconds: float = 10
    ) -> tuple[int, object]:
        """Ask for a score: status and score."""
        async with (app or self.app).client(timeout=seconds) as client:
            answer = await client.get(f"/scores/{player}")
            is_score = answer.status_code == 200
            if is_score:
                assert answer.json()["player"] == player, f"got {answer.text}"
            return answer.status_code, answer.json()["score"] if is_score else None

    @check("A score is fetched once and then remembered")
    async def happy(self) -> None:
        found = [await self.get("ann") for _ in range(3)]
        assert found == [(200, 42)] * 3, f"got {found}"
        assert self.calls()["ann"] == 1, f"fetched {self.calls()['ann']} times"

    @check("A score of 0, false, null or nothing is remembered too", trap=True)
    async def falsy(self) -> None:
        for player, score in FALSY.items():
            found = [await self.get(player) for _ in range(2)]
            assert found == [(200, score)] * 2, f"{score!r} became {found}"
            times = self.calls()[player]
            assert times == 1, f"{score!r} was fetched {times} times"

    @check("80 callers at once cause one call", trap=True)
    async def crowd(self) -> None:
        found = await asyncio.gather(*(self.get("crowd-1") for _ in range(80)))
        assert set(found) == {(200, 42)}, f"got {set(found)}"
        assert self.calls()["crowd-1"] == 1, f"{self.calls()['crowd-1']} calls"

    @check("Another copy of the service uses what the first one has fetched", trap=True)
    async def shared(self) -> None:
        await self.get("shared")
        other = await self.start()
        found = await self.get("shared", other)
        assert found == (200, 42), f"got {found}"
        assert self.calls()["shared"] == 1, "the other copy fetched it again"
        both = [self.app, other] * 30
        found_by_all = await asyncio.gather(*(self.get("crowd-2", app) for app in both))
        assert set(found_by_all) == {(200, 42)}, f"got {set(found_by_all)}"
        calls = self.calls()["crowd-2"]
        assert calls <= 2, f"60 callers of two copies caused {calls} calls"

    @check("A player whose score is slow does not hold up the others")
    async def independent(self) -> None:
        slow = asyncio.gather(*(self.get(f"slow-{n % 3}") for n in range(30)))
        async with during(slow):
            await until(lambda: self.calls()["slow-1"], "the service is not asked")
            found = await self.get("quick", seconds=6)
            self.release.set()
            codes = {status for status, _ in await slow}
        assert found == (200, 42), f"got {found}"
        assert codes == {200}, f"the slow ones are answered with {codes}"

    @check("A caller who leaves does not take the answer from the others")
    async def leaves(self) -> None:
        self.release.clear()
        with_patience: list[asyncio.Task[tuple[int, object]]] = []
        async with during(self.get("slow-leave")) as impatient:
            await until(lambda: self.calls()["slow-leave"], "it is not asked")
            with_patience = [
                asyncio.create_task(self.get("slow-leave")) for _ in range(5)
            ]
            await asyncio.sleep(0.3)
            impatient.cancel()
            await asyncio.sleep(0.3)
            self.release.set()
            found = set(await asyncio.gather(*with_patience))
        assert found == {(200, 42)}, f"the others got {found}"

    @check("A failure is a 502 and is not remembered, an unknown player is a 404")
    async def failing(self) -> None:
        codes = [(await self.get("broken"))[0], (await self.get("unknown"))[0]]
        assert codes == [502, 404], f"502 and 404 expected, got {codes}"
        self.broken = False
        status = (await self.get("broken"))[0]
        assert status == 200, f"when the service works again it is {status}"

    @check("Nothing stays in Redis for longer than a minute", trap=True)
    async def expiry(self) -> None:
        await self.get("expiry")
        async with redis.asyncio.from_url(self.env["REDIS_URL"]) as client:
            found = {key: await client.ttl(key) async for key in client.scan_iter()}
        assert found, "nothing is in Redis"
        kept = [key for key, ttl in found.items() if not -2 <= ttl <= 60 or ttl == -1]
        assert not kept, f"{kept[0]!r} stays longer"

    @check("Without Redis it still answers")
    async def no_cache(self) -> None:
        app = await self.start(REDIS_URL="redis://127.0.0.1:9/0")
        try:
            found = await self.get("without", app, seconds=8)
        except httpx2.TimeoutException:
            raise AssertionError("no answer in 8 s") from None
        assert found == (200, 42), f"got {found}"
