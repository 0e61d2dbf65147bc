"""The recipe, and routes that show what its gotchas say of threads."""

import asyncio
from contextlib import suppress
from contextvars import ContextVar

from anyio import from_thread
from fastapi import Depends, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from recipes.routes.def_or_async import CardsDep, app, read_card, threads

user = ContextVar("user", default="nobody")
bell = asyncio.Event()


def set_in_def() -> None:
    user.set("somebody")


async def set_in_async_def() -> None:
    user.set("somebody")


@app.get("/def-dependency", dependencies=[Depends(set_in_def)])
async def with_def_dependency() -> str:
    return user.get()


@app.get("/async-def-dependency", dependencies=[Depends(set_in_async_def)])
async def with_async_def_dependency() -> str:
    return user.get()


@app.get("/file")
async def file() -> FileResponse:
    return FileResponse(__file__, media_type="text/plain")


@app.post("/upload")
async def upload(file: UploadFile) -> int | None:
    return file.size


@app.get("/timeout")
async def timeout(cards: CardsDep) -> dict[str, int]:
    loop = asyncio.get_running_loop()
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as limit:

            def read() -> int:
                loop.call_soon_threadsafe(limit.reschedule, 0)  # now that it runs
                return read_card(cards)

            await run_in_threadpool(read)
    return await threads()


@app.get("/wait")
async def wait() -> str:
    await bell.wait()
    return "rung"


@app.get("/ring")
def ring() -> None:
    from_thread.run_sync(bell.set)
