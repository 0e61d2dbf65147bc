"""background/temporary_files with reports that fail, and a folder deleted too early."""

import errno
from pathlib import Path
from typing import Annotated

from fastapi import Depends
from fastapi.responses import FileResponse

from recipes.background import temporary_files
from recipes.background.temporary_files import app, request_folder

FULL, WRONG = 507, 500
_write = temporary_files.write_report


def write_report(path: Path, rows: int) -> None:
    _write(path, rows)
    if rows == FULL:
        raise OSError(errno.ENOSPC, "No space left on device")
    if rows == WRONG:
        raise OSError(errno.EIO, "Input/output error")


temporary_files.write_report = write_report


@app.get("/too-early")
def too_early(
    folder: Annotated[Path, Depends(request_folder, scope="function")],
) -> FileResponse:
    path = folder / "report.csv"
    _write(path, 1)
    return FileResponse(path)
