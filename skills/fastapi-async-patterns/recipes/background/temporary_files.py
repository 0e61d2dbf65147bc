# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Delete temporary files on time, even after a crash.

Each request gets a folder, deleted when the response has been sent or the request has
failed. It lies in the folder of its process, deleted when that stops. The process locks
this folder: after a crash the lock is free, and the next start deletes the folder.

**Use when** a request needs files with names: for ffmpeg, a PDF, a zip to download.
**Not when** your own code reads and writes: `tempfile.TemporaryFile()` has no name, and
the system deletes it even after SIGKILL. To keep a file, see streaming/upload.

Gotchas:

- A background task that sleeps before it deletes holds up SIGTERM, and a crash forgets
  it. A start that deletes by age deletes what another worker still sends.
- `Depends(scope="function")` deletes before the response is sent: "File at path … does
  not exist."
- A thread goes on when its request is cancelled, and may write after the deletion. The
  stop deletes that, or the next start.
- `/tmp` may be in memory (tmpfs): set `TMPDIR` to a directory on disk.
- A client that does not read keeps its files. `Depends(..., max_concurrency=8)` limits
  the folders, but then eight such clients block all others: put a proxy in front.
- `fcntl` exists on Linux and macOS. Do not trust its locks on a network file system.

Try it:

    GET /report?rows=3
    GET /report?rows=0  # 422

Keywords: temporary files, tempfile, cleanup, delete after response, FileResponse,
  TemporaryDirectory, disk full, leftover files, BackgroundTasks
Related: streaming/upload, streaming/download, background/after_response
"""

import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import FileResponse


@contextmanager
def locked(folder: Path, flags: int = LOCK_EX) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        flock(descriptor, flags)
        yield
    finally:
        os.close(descriptor)  # unlocks; so does the end of the process


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    # A thread of a cancelled request may still write: that is no reason to fail.
    with TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def process_folder() -> Iterator[Path]:
    root = Path(gettempdir(), f"reports-{os.getuid()}")  # your app's name
    root.mkdir(mode=0o700, exist_ok=True)
    if root.lstat().st_uid != os.getuid():
        raise RuntimeError(f"{root} belongs to another user.")
    with ExitStack() as stack:
        with locked(root):  # no other process starts meanwhile
            for old in root.iterdir():
                with suppress(OSError), locked(old, LOCK_EX | LOCK_NB):
                    shutil.rmtree(old)  # not locked: its process has ended
            folder = stack.enter_context(temporary_folder(root))
            stack.enter_context(locked(folder))
        yield folder


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Path]]:
    async with contextmanager_in_threadpool(process_folder()) as folder:
        yield {"folder": folder}


app = FastAPI(lifespan=lifespan)


def request_folder(request: Request) -> Iterator[Path]:  # `def`: in threads
    folder: Path = request.state.folder
    try:
        with temporary_folder(folder) as path:
            yield path
    except OSError as error:  # also one of the route
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise HTTPException(507, "No space for the report.") from None
        raise


def write_report(path: Path, rows: int) -> None:  # demo: your ffmpeg, PDF or zip
    with path.open("w") as file:
        file.writelines(f"{row},{row * row}\n" for row in range(rows))


@app.get("/report")
def report(
    folder: Annotated[Path, Depends(request_folder)],
    rows: Annotated[int, Query(ge=1, le=500_000)],
) -> FileResponse:
    path = folder / "report.csv"
    write_report(path, rows)
    return FileResponse(path, filename="report.csv")


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        folder: Path = client.app_state["folder"]
        with client.stream("GET", "/report?rows=500000") as response:
            during = len(list(folder.rglob("*.csv")))
            lines = sum(1 for _ in response.iter_lines())
        print(lines, "lines;", during, "file, then", len(list(folder.iterdir())))
        # > 500000 lines; 1 file, then 0
    print(folder.exists())
    # > False


if __name__ == "__main__":
    main()
