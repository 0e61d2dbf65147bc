"""routes/deadline with routes that resist."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request

from recipes.routes import deadline

deadline.SECONDS = 1
logger = logging.getLogger(__name__)
router = APIRouter(route_class=deadline.DeadlineRoute)
plain = APIRouter()
bank_is_up = asyncio.Event()
charges: list[int] = []


@router.post("/charge/{order}")
async def charge(order: int) -> None:
    logger.warning("charge %s waits", order)
    await bank_is_up.wait()
    charges.append(order)


@router.get("/own-timeout")
async def own_timeout() -> None:
    raise TimeoutError("no connection free")


@plain.get("/charges")
async def list_charges() -> list[int]:
    return charges


@plain.post("/bank-is-up")
async def bank() -> None:
    bank_is_up.set()


@plain.post("/reset")
async def reset() -> None:
    bank_is_up.clear()
    charges.clear()


@router.post("/body")
async def body(numbers: list[int]) -> int:
    return len(numbers)


async def hangs() -> None:
    await asyncio.Event().wait()


@router.get("/hanging-dependency", dependencies=[Depends(hangs)])
async def never() -> None: ...


async def request_scope() -> AsyncIterator[None]:
    try:
        yield
    except BaseException as error:
        await asyncio.sleep(0)
        logger.warning("dependency cleaned up after %s", type(error).__name__)
        raise


@router.get("/cleanup", dependencies=[Depends(request_scope)])
async def cleanup() -> None:
    try:
        await hangs()
    finally:
        await asyncio.sleep(0)
        logger.warning("endpoint cleaned up")


@router.get("/cleanup-anyio")
async def cleanup_anyio() -> str:
    with anyio.move_on_after(0):
        try:
            await hangs()
        finally:
            await asyncio.sleep(0)
            logger.warning("anyio cleaned up")
    return "moved on"


@router.get("/cleanup-fails")
async def cleanup_fails() -> None:
    try:
        await hangs()
    finally:
        raise HTTPException(418)


@router.get("/swallows")
async def swallows() -> str:
    with suppress(BaseException):  # what a library should not do
        await hangs()
    return "half of it"


@router.get("/thread")
def thread(request: Request) -> None:
    logger.warning("a thread starts")
    while not bank_is_up.is_set():
        time.sleep(0.01)
    logger.warning("a thread is done, %s s left", deadline.remaining(request))


async def takes_time() -> None:
    await asyncio.sleep(0.01)


@router.get("/left")
async def left(request: Request, _: Annotated[None, Depends(takes_time)]) -> float:
    return deadline.remaining(request)


@router.get("/stream")
async def stream() -> AsyncIterator[int]:
    await bank_is_up.wait()
    yield 1


app = FastAPI()
app.include_router(router)
app.include_router(plain)
