"""The recipe with two threads, and routes that show what its gotchas say of threads."""

import asyncio
import os
from contextlib import suppress
from contextvars import ContextVar

from anyio import from_thread
from fastapi import Depends, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from recipes.routes import def_or_async
from recipes.routes.def_or_async import CardReader, app, threads

THREADS = def_or_async.THREADS = 2
def_or_async.READ_SECONDS = float(os.environ.get("READ_SECONDS", "20"))  # type: ignore[assignment]

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


@app.get("/to-thread")
async def to_thread() -> str:
    return await asyncio.to_thread(lambda: "done")


@app.get("/timeout")
async def timeout(request: Request) -> dict[str, int]:
    reader: CardReader = request.state.reader
    loop = asyncio.get_running_loop()
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as limit:

            def read() -> int:
                loop.call_soon_threadsafe(limit.reschedule, 0)  # now that it runs
                return reader.read(timeout=20)

            await run_in_threadpool(read)
    return await threads()


@app.get("/wait")
async def wait() -> str:
    await bell.wait()
    return "rung"


@app.get("/ring")
def ring() -> None:
    from_thread.run_sync(bell.set)
