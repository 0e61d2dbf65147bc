"""It measures the lag from inside the event loop: while a call blocks, it reports
nothing, and afterwards it cannot tell which call it was."""

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

logger = logging.getLogger(__name__)


async def measure_lag():
    while True:
        before = time.monotonic()
        await asyncio.sleep(0.1)
        lag = time.monotonic() - before - 0.1
        if lag > 0.1:
            logger.warning("The event loop was blocked for %.1f s", lag)


@asynccontextmanager
async def lifespan(app: FastAPI):
    task = asyncio.create_task(measure_lag())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/wait")
async def wait_for_file(path: Path):
    while not path.exists():
        time.sleep(0.01)
