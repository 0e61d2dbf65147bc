"""Apps that do what the harness must notice."""

import asyncio
import os
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

app = FastAPI()
kept: list[object] = []


@app.get("/fine")
async def fine() -> str:
    return "fine"


@app.get("/blocks")
async def blocks() -> None:
    time.sleep(0.01)  # noqa: ASYNC251 - on purpose


@app.get("/leaks-a-task")
async def leaks_a_task() -> None:
    kept.append(asyncio.create_task(asyncio.sleep(3600)))


@app.get("/leaks-a-descriptor")
async def leaks_a_descriptor() -> None:
    os.dup(1)


@app.get("/loses-an-exception")
async def loses_an_exception() -> None:
    asyncio.create_task(fails())  # noqa: RUF006 - on purpose


async def fails() -> None:
    raise ValueError("lost")


@app.get("/warns")
async def warns() -> None:
    warnings.warn("old", DeprecationWarning, stacklevel=1)


@app.get("/forgets-to-await")
async def forgets_to_await() -> None:
    fails()  # type: ignore[unused-coroutine]


@asynccontextmanager
async def broken_lifespan(_: FastAPI) -> AsyncIterator[None]:
    raise RuntimeError("no such host")
    yield


broken = FastAPI(lifespan=broken_lifespan)
