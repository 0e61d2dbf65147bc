# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Send files from a folder, and nothing else.

The path is resolved with its links, and must then be a readable file below the folder;
anything else is a 404. `FileResponse` reads in threads, answers `Range`, so that a
download can resume, and encodes the name in `Content-Disposition`.

**Use when** the app decides who gets which file. **Not when** all may have them: let
nginx or a CDN send them, or use `StaticFiles`, which also answers 304.

Gotchas:

- `StreamingResponse` starts before its generator opens the file. A missing file is then
  a 200 that breaks off, and there are no ranges, no length and no `ETag`.
- The file is opened after the check, and after the headers. So only the app may write
  to the folder: others could swap in a link meanwhile. Publish with a rename, as in
  streaming/upload, and delete late: a file that shrinks or goes meanwhile is a 500, or
  the response breaks off: "Response content shorter than Content-Length".
- Without `attachment` and `nosniff`, an HTML file of a user runs scripts as your page.
- `@app.get` does not answer HEAD; download managers send it.
- A `Range` with more than 100 parts gets the whole file; so does an old `If-Range`.
- Not covered: who may read, and hidden files: all below the folder can be downloaded.
  Each block of 64 KiB takes one of the 40 threads; a disk that hangs keeps them.

Try it:

    GET /files/prices%20in%20%E2%82%AC.txt
    GET /files/missing.txt  # 404
    GET /files/..%2F..%2F..%2Fetc%2Fpasswd  # 404

Keywords: file download, FileResponse, path traversal, Content-Disposition, Range,
  resume download, 206 Partial Content, filename encoding, UnicodeEncodeError
Related: streaming/upload, background/temporary_files, routes/def_or_async
"""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import contextmanager_in_threadpool
from fastapi.responses import FileResponse


@contextmanager
def open_folder() -> Iterator[Path]:
    with ExitStack() as stack:
        path = os.environ.get("DOWNLOAD_DIR")
        if not path:  # demo: in your app, start only with DOWNLOAD_DIR
            path = stack.enter_context(TemporaryDirectory())  # demo
            Path(path, "prices in €.txt").write_text("7 €")  # demo
        yield Path(path).resolve(strict=True)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Path]]:
    async with contextmanager_in_threadpool(open_folder()) as folder:
        yield {"folder": folder}


app = FastAPI(lifespan=lifespan)


def find(folder: Path, name: str) -> Path | None:
    # OSError: missing, too long. ValueError: NUL. RuntimeError: links in a circle.
    with suppress(OSError, ValueError, RuntimeError):
        path = (folder / name).resolve(strict=True)  # without `..` and links
        is_inside = path.is_relative_to(folder)
        if is_inside and path.is_file() and os.access(path, os.R_OK):  # no FIFO
            return path
    return None


@app.head("/files/{name:path}", include_in_schema=False)
@app.get("/files/{name:path}", response_class=FileResponse)
def download(request: Request, name: str) -> FileResponse:  # `def`: disks block
    folder: Path = request.state.folder
    path = find(folder, name)
    if path is None:
        raise HTTPException(404, "There is no such file.")
    return FileResponse(
        path,
        filename=Path(name).name,  # sends it as an attachment
        headers={"X-Content-Type-Options": "nosniff"},
    )


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        part = client.get("/files/prices in €.txt", headers={"Range": "bytes=2-"})
        print(part.status_code, part.text, part.headers["Content-Disposition"])
        # > 206 € attachment; filename*=utf-8''prices%20in%20%E2%82%AC.txt
        for name in ("missing.txt", "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "%00"):
            print(client.get(f"/files/{name}").status_code)
            # > 404
            # > 404
            # > 404
            # > 404


if __name__ == "__main__":
    main()
