# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Take an upload to disk in constant memory.

The request body is the file. It goes block by block from the socket to a partial
file, and a rename publishes it when it is complete. The server picks the path, not the
client. A failed upload (too large, too slow, cut off, disk full) leaves nothing.

**Use when** files are large, or you must refuse before the upload. **Not when** an
HTML form sends it, or fields come with it: use `UploadFile`. But that stores the whole
file in the temporary directory before any dependency runs, even the login.

Gotchas:

- Send the bare file: `curl -X POST -T file URL`, `fetch(url, {method: "POST", body:
  file})`. A multipart form (`curl -F`, `FormData`) gets 415.
- SIGTERM waits for uploads: start uvicorn with `--timeout-graceful-shutdown 30`.
- What a crash leaves is deleted at the next start. `fcntl` is POSIX only.
- Not covered: who may upload, limits per client (16 slow uploads lock out the rest),
  virus scans, a rename lost in a power cut (fsync the directory).

Try it:

    POST /files?name=../notes.txt hello  # 201

Keywords: file upload, UploadFile, large file, 413, path traversal, disk full
Related: routes/def_or_async, lifespan/resources
"""

import asyncio
import errno
import fcntl
import hashlib
import os
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
MAX_UPLOADS = 16  # at once: fewer than the 40 threads, and 16 blocks in memory
BLOCK = 1024 * 1024  # one trip to a thread per block, not per packet
BLOCK_SECONDS = 30  # per block: a client slower than 35 kB/s gets 408
Name = Annotated[str, Query(max_length=255)]
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def open_directory() -> Iterator[Path]:
    with ExitStack() as stack:
        given = os.environ.get("UPLOAD_DIR")  # unset, files are deleted at stop
        directory = Path(given or stack.enter_context(TemporaryDirectory()))
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY)
        stack.callback(os.close, lock)
        with suppress(BlockingIOError):  # another worker lives, and may be writing
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in directory.glob(".upload-*"):
                leftover.unlink()
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield directory


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with contextmanager_in_threadpool(open_directory()) as directory:
        yield {"directory": directory, "slots": asyncio.Semaphore(MAX_UPLOADS)}


app = FastAPI(lifespan=lifespan)


@app.post("/files", status_code=201, max_body_size=MAX_BYTES)
async def upload(request: Request, name: Name = "") -> dict[str, str | int]:
    if request.headers.get("Content-Type", "").lower().startswith("multipart/"):
        raise HTTPException(415, "Send the file itself as the body, not a form.")
    if request.state.slots.locked():
        raise HTTPException(503, "Too many uploads.", {"Retry-After": "10"})
    async with request.state.slots:
        stored = await store(request.stream(), request.state.directory)
        return {"name": name, **stored}


async def store(body: AsyncIterator[bytes], directory: Path) -> dict[str, str | int]:
    file_id, size, digest = uuid4().hex, 0, hashlib.sha256()
    part = directory / f".upload-{file_id}"

    def append(block: bytearray) -> None:
        with part.open("ab") as file:  # per block: a cancelled request leaks none
            file.write(block)
        digest.update(block)

    def publish() -> None:
        with part.open("ab") as file:
            os.fsync(file.fileno())  # else the name may outlive the content
        part.replace(directory / file_id)

    try:
        while block := await next_block(body):
            await run_in_threadpool(append, block)
            size += len(block)
        await run_in_threadpool(publish)
    except BaseException as error:
        with CancelScope(shield=True):  # else the next await is cancelled too
            await run_in_threadpool(part.unlink, missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise HTTPException(507, "No space for this file.") from None
        raise
    return {"id": file_id, "size": size, "sha256": digest.hexdigest()}


async def next_block(body: AsyncIterator[bytes]) -> bytearray:
    """About `BLOCK` bytes; fewer at the end of the body, then none."""
    block = bytearray()
    try:
        async with asyncio.timeout(BLOCK_SECONDS):
            async for chunk in body:
                block += chunk
                if len(block) >= BLOCK:
                    break
    except (TimeoutError, ClientDisconnect):  # else "Exception in ASGI application"
        raise HTTPException(408, "Too slow.", {"Connection": "close"}) from None
    return block


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        for content in (b"A", b"B"):
            client.post("/files?name=../notes.txt", content=content)
        print(client.post("/files", content=bytes(MAX_BYTES + 1)).status_code)
        # > 413
        files = client.app_state["directory"].iterdir()
        print(sorted(file.read_bytes() for file in files))
        # > [b'A', b'B']


if __name__ == "__main__":
    main()
