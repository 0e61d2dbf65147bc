# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Save an upload to disk in constant memory.

The request body is the file. It goes block by block from the socket to a partial
file, and a rename publishes it when it is complete. The server picks the path, not the
client. A failed upload (too large, too slow, cut off, disk full) leaves nothing.

**Use when** files are large, or you must refuse before the upload. **Not when** an
HTML form sends them: use streaming/form_upload, which receives all before a login runs.

Gotchas:

- Send the bare file: `curl -X POST -T file URL`. A form (`curl -F`) gets 415.
- SIGTERM waits for uploads: start uvicorn with `--timeout-graceful-shutdown 30`.
- A crash leaves partial files. A start deletes those that are older than an hour.
- Not covered: who may upload (a dependency can refuse before the body is read), limits
  per client (16 slow uploads block a worker), a rename lost in a power cut.

Try it:

    POST /files?name=../notes.txt hello  # 201

Keywords: file upload, UploadFile, large file, 413, path traversal, disk full
Related: streaming/form_upload, routes/def_or_async, lifespan/resources
"""

import asyncio
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from uuid import uuid4

from anyio import CancelScope
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from starlette.requests import ClientDisconnect

MAX_BYTES = 100 * 1024 * 1024
MAX_UPLOADS = 16  # per worker, at once: it has 40 threads; 16 blocks in memory
BLOCK = 1024 * 1024  # one trip to a thread per block, not per packet
BLOCK_SECONDS = 30  # per block: a client slower than 35 kB/s gets 408
Name = Annotated[str, Query(max_length=255)]


@contextmanager
def open_directory() -> Iterator[Path]:
    """The directory of the files, without what a crash left long ago."""
    with ExitStack() as stack:
        path = os.environ.get("UPLOAD_DIR")
        if not path:  # demo: in your app, start only with UPLOAD_DIR
            path = stack.enter_context(TemporaryDirectory())  # demo
            logging.getLogger().warning("No UPLOAD_DIR: a stop deletes all")  # demo
        directory = Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        for part in directory.glob(".upload-*"):
            with suppress(FileNotFoundError):  # other workers delete them, too
                if part.stat().st_mtime < time.time() - 3600:  # a live one grows
                    part.unlink()
        yield directory


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with contextmanager_in_threadpool(open_directory()) as directory:
        yield {"directory": directory, "slots": asyncio.Semaphore(MAX_UPLOADS)}


app = FastAPI(lifespan=lifespan)


@app.post("/files", status_code=201, max_body_size=MAX_BYTES)
async def upload(request: Request, name: Name = "") -> dict[str, str | int]:
    directory: Path = request.state.directory
    slots: asyncio.Semaphore = request.state.slots
    if request.headers.get("Content-Type", "").lower().startswith("multipart/"):
        raise HTTPException(415, "Send the file itself as the body, not a form.")
    if slots.locked():  # no await between this and `async with`
        raise HTTPException(503, "Too many uploads.", {"Retry-After": "10"})
    async with slots:
        file_id, size = await store(request.stream(), directory)
    return {"id": file_id, "name": name, "size": size}


async def store(body: AsyncIterator[bytes], directory: Path) -> tuple[str, int]:
    file_id, size = uuid4().hex, 0
    part = directory / f".upload-{file_id}"

    def append(block: bytearray) -> None:
        with part.open("r+b") as file:  # per block: a cancelled request leaks none
            file.seek(size)
            file.write(block)

    def publish() -> None:
        with part.open("r+b") as file:  # fails if a cancelled request deleted it
            os.fsync(file.fileno())  # else the name may outlive the content
        part.replace(directory / file_id)

    try:
        await run_in_threadpool(part.touch)
        while block := await next_block(body):
            await run_in_threadpool(append, block)
            size += len(block)
        await run_in_threadpool(publish)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise HTTPException(507, "No space for this file.") from None
        raise
    finally:
        with CancelScope(shield=True):  # else the next await is cancelled too
            await run_in_threadpool(part.unlink, missing_ok=True)  # if not renamed
    return file_id, size


async def next_block(body: AsyncIterator[bytes]) -> bytearray:
    block = bytearray()  # stays empty at the end of the body
    try:
        async with asyncio.timeout(BLOCK_SECONDS):
            async for chunk in body:
                block += chunk
                if len(block) >= BLOCK:
                    break
    except (TimeoutError, ClientDisconnect):  # else "Exception in ASGI application"
        raise HTTPException(408, "Too slow or gone.", {"Connection": "close"}) from None
    return block


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        for content in (b"A", b"B", bytes(MAX_BYTES + 1)):
            last = client.post("/files?name=../notes.txt", content=content)
        files = client.app_state["directory"].iterdir()
        print(last.status_code, sorted(file.read_bytes() for file in files))
        # > 413 [b'A', b'B']


if __name__ == "__main__":
    main()
