"""Heavy computations that leave the service alive, and go away with it."""

import asyncio
import contextlib
from collections import Counter

import httpx2
import psutil

from tests.evals.harness import Grader, check, during, until

SMALL = {10: 4, 100: 25, 1000: 168}
LONG = 2_000_000
WAITING = 10


class Task(Grader):
    """See `primes` in `evals.json`."""

    async def health(self) -> None:
        """The service is alive."""
        async with self.app.client(timeout=2.5) as client:
            try:
                status = (await client.get("/health")).status_code
            except httpx2.TimeoutException:
                raise AssertionError("the health gets no answer") from None
            assert status == 200, f"the health is answered with {status}"

    async def count(self, *limits: int) -> list[int]:
        """Ask for several counts at once; the statuses."""
        async with self.app.client(timeout=None) as client:
            asking = (client.get(f"/primes/{limit}") for limit in limits)
            return [answer.status_code for answer in await asyncio.gather(*asking)]

    @check("Primes are counted")
    async def happy(self) -> None:
        async with self.app.client() as client:
            for limit, number in SMALL.items():
                answer = await client.get(f"/primes/{limit}")
                expected = {"below": limit, "count": number}
                assert answer.json() == expected, f"got {answer.text}"
        await self.health()

    @check("A limit that is out of range or no number is a 422")
    async def bad(self) -> None:
        async with self.app.client() as client:
            for limit in ("0", "-5", "3000001", "many", "9" * 40):
                status = (await client.get(f"/primes/{limit}")).status_code
                assert status == 422, f"{limit} is answered with {status}"

    @check("The health is answered while counts are running", trap=True)
    async def alive(self) -> None:
        try:
            async with during(self.count(*[LONG] * 4)) as counting:
                await asyncio.sleep(0.3)
                for _ in range(5):
                    await self.health()
                    assert not counting.done(), "the health waits for the counts"
        finally:
            self.app.kill()  # it would go on counting

    @check("At most 2 run and 10 wait, and what exceeds that gets 503", trap=True)
    async def overload(self) -> None:
        codes: Counter[int] = Counter()

        async def one() -> None:
            codes.update(await self.count(LONG))

        crowd = asyncio.gather(*(one() for _ in range(30)))
        refused = 30 - 2 - WAITING
        message = f"{refused} times 503 expected"
        try:
            async with during(crowd):
                await until(lambda: codes[503] >= refused - 2, message, 6)
        finally:
            self.app.kill()
        assert codes[503] <= refused + 2, f"{codes[503]} times 503, not {refused}"

    @check("It recovers when the system kills a process that it has started")
    async def killed(self) -> None:
        await self.count(1000, 1000)
        children = psutil.Process(self.app.process.pid).children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        codes = [(await self.count(1000))[0] for _ in range(4)]
        assert codes[-2:] == [200, 200], f"afterwards it answers {codes}"

    @check("10 seconds after SIGTERM nothing of it is left")
    async def stop(self) -> None:
        app = await self.start()
        async with app.client() as client:
            await asyncio.gather(*(client.get("/primes/1000") for _ in range(3)))
        left = psutil.Process(app.process.pid).children(recursive=True)
        app.terminate()
        assert await app.ended(10), "it still runs"
        await until(
            lambda: not any(child.is_running() for child in left),
            "a process that it has started still runs",
            3,
        )
