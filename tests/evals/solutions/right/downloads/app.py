"""Files of one folder, and of nothing else."""

import os
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

app = FastAPI()


@app.get("/files/{name:path}")
def download(name: str) -> FileResponse:
    root = Path(os.environ["FILES_DIR"]).resolve()
    try:
        path = (root / name).resolve(strict=True)
        found = path.is_relative_to(root) and path.is_file()
    except (OSError, ValueError):
        found = False
    if not found:
        raise HTTPException(404, "no such file")
    return FileResponse(path, filename=path.name)
