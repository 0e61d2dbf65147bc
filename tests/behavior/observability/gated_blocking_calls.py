"""The lifespan of observability/blocking_calls around calls of the tests' choosing."""

import asyncio
import faulthandler
import os
import re
import time
from pathlib import Path

from fastapi import FastAPI

from recipes.observability import blocking_calls

blocking_calls.LOG_INTERVAL = float(os.environ.get("LOG_INTERVAL", "0"))  # 0: logs all
app = FastAPI(lifespan=blocking_calls.lifespan)
app.add_api_route("/loop", blocking_calls.loop)


def busy(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@app.post("/wait")
async def wait_for_file(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)  # noqa: ASYNC251 - it blocks on purpose


@app.post("/sleep")
async def sleeps() -> None:
    time.sleep(0.01)  # noqa: ASYNC251 - it blocks on purpose


@app.post("/busy")
async def compute(seconds: float) -> None:
    busy(seconds)


@app.post("/thread")
def in_a_thread(seconds: float) -> None:
    time.sleep(seconds)


@app.post("/await")
async def awaits(seconds: float) -> None:
    await asyncio.sleep(seconds)


@app.post("/regex")
async def holds_the_gil() -> None:
    faulthandler.dump_traceback_later(0.05)
    re.match("(a+)+$", "a" * 24 + "b")
    faulthandler.cancel_dump_traceback_later()


async def step() -> None:
    busy(0.001)


@app.post("/steps")
async def short_steps() -> None:
    await asyncio.gather(*(step() for _ in range(400)))
