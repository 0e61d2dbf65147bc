# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Accept a file from an HTML form.

FastAPI receives the form into a temporary file. The `def` endpoint, in a thread, copies
the file to a folder with a random name, and a rename publishes it when it is complete.
The client's name for it is only text. A failed upload leaves nothing.

**Use when** a form (`<input type="file">`, `FormData`, `curl -F`) sends some megabytes.
**Not when** files are large, or a login must come before the upload: streaming/upload
receives the bare file.

Gotchas:

- The whole form is received before any dependency runs, a login too. A proxy or
  `uvicorn --limit-concurrency` limits how many arrive at once, and the route class of
  routes/deadline, with more seconds, how long that takes.
- FastAPI keeps up to 1 MiB in memory and a larger file in `TMPDIR`, without a name: a
  crash leaves nothing there. When it is full (`/tmp` may be memory), the client gets
  400, "There was an error parsing the body", and nothing is logged.
- In `async def` the copy blocks the event loop; `await file.read()` loads all of it.
- More than `form_limits` is a 400: "Too many files. Maximum number of files is 1."
- Not covered: who may upload or read, what is in a file (`content_type` is the client's
  word), a name or rename lost in a power cut.

Try it:

    POST /files file=@  # 201

Keywords: UploadFile, multipart/form-data, HTML form, file upload, python-multipart,
  max upload size, 413, path traversal, SpooledTemporaryFile
Related: streaming/upload, streaming/download, routes/deadline, routes/def_or_async
"""

import errno
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, HTTPException, Request, UploadFile
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import FileResponse

MAX_BYTES = 10 * 1024 * 1024
MAX_COPIES = 8  # at once: other routes need some of the 40 threads, too


@contextmanager
def open_folder() -> Iterator[Path]:
    with ExitStack() as stack:
        path = os.environ.get("UPLOAD_DIR")
        if not path:  # demo: in your app, start only with UPLOAD_DIR
            path = stack.enter_context(TemporaryDirectory())  # demo
            logging.getLogger().warning("No UPLOAD_DIR: a stop deletes all")  # demo
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(".form-*"):  # a crash left it, or it is being copied
            with suppress(FileNotFoundError):  # other workers delete them, too
                if part.stat().st_mtime < time.time() - 3600:
                    shutil.rmtree(part, ignore_errors=True)
        yield folder


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Path]]:
    async with contextmanager_in_threadpool(open_folder()) as folder:
        yield {"folder": folder}


app = FastAPI(lifespan=lifespan)


async def slot() -> AsyncIterator[None]:
    yield


@app.post(
    "/files",
    status_code=201,
    max_body_size=MAX_BYTES + 64 * 1024,  # the rest of the form; 413 while it arrives
    form_limits={"max_files": 1, "max_fields": 10, "max_part_size": 5000},
    dependencies=[Depends(slot, scope="function", max_concurrency=MAX_COPIES)],
)
def upload(request: Request, file: UploadFile) -> dict[str, str | int]:
    folder: Path = request.state.folder
    if not file.size:
        raise HTTPException(422, "Choose a file that is not empty.")
    if file.size > MAX_BYTES:
        raise HTTPException(413, "This file is too large.")
    # No line break, lone surrogate or change of text direction.
    name = "".join(c if c.isprintable() else "_" for c in (file.filename or "")[:255])
    file_id = uuid4().hex  # the path is ours
    part = folder / f".form-{file_id}"
    try:
        part.mkdir()
        (part / "name").write_text(name, "utf-8")
        with (part / "content").open("xb") as copy:
            shutil.copyfileobj(file.file, copy)
            copy.flush()
            os.fsync(copy.fileno())  # else the rename may outlive the content
        part.rename(folder / file_id)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise HTTPException(507, "No space for this file.") from None
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)  # if not renamed
    return {"id": file_id, "name": name, "size": file.size}


@app.get("/files/{file_id}", response_class=FileResponse)
def download(request: Request, file_id: UUID) -> FileResponse:
    found: Path = request.state.folder / file_id.hex
    if not found.is_dir():
        raise HTTPException(404, "There is no such file.")
    return FileResponse(
        found / "content",
        filename=Path((found / "name").read_text("utf-8")).name,  # as an attachment
        media_type="application/octet-stream",
        headers={"X-Content-Type-Options": "nosniff"},
    )


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        sent = client.post("/files", files={"file": ("../a.txt", b"hello")})
        found = client.get(f"/files/{sent.json()['id']}")
        print(found.text, found.headers["Content-Disposition"])
        # > hello attachment; filename="a.txt"
        large = client.post("/files", files={"file": bytes(MAX_BYTES + 1)})
        print(large.status_code, len(list(client.app_state["folder"].iterdir())))
        # > 413 1


if __name__ == "__main__":
    main()
