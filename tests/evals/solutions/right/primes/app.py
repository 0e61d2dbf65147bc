"""Counts in two processes, with a bounded waiting room."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from multiprocessing import get_context
from typing import Annotated

from fastapi import FastAPI, HTTPException, Path, Request

RUNNING = 2
WAITING = 10


def count_primes(below: int) -> int:
    found = 0
    for number in range(2, below):
        divisor = 2
        while divisor * divisor <= number and number % divisor:
            divisor += 1
        found += divisor * divisor > number
    return found


class Counter:
    def __init__(self) -> None:
        self.inside = 0
        self.renew()

    def renew(self) -> None:
        self.pool = ProcessPoolExecutor(RUNNING, mp_context=get_context("spawn"))

    async def count(self, below: int) -> int:
        if self.inside >= RUNNING + WAITING:
            raise HTTPException(503, "too many counts", {"Retry-After": "10"})
        self.inside += 1
        try:
            for _ in range(2):
                pool = self.pool
                try:
                    loop = asyncio.get_running_loop()
                    return await loop.run_in_executor(pool, count_primes, below)
                except BrokenProcessPool:
                    if pool is self.pool:
                        pool.shutdown(wait=False)
                        self.renew()
        finally:
            self.inside -= 1
        raise HTTPException(503, "counting fails")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Counter]]:
    counter = Counter()
    yield {"counter": counter}
    counter.pool.shutdown(cancel_futures=True)


app = FastAPI(lifespan=lifespan)


@app.get("/primes/{below}")
async def primes(
    below: Annotated[int, Path(ge=1, le=3_000_000)], request: Request
) -> dict[str, int]:
    return {"below": below, "count": await request.state.counter.count(below)}


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}
