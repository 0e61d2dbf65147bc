"""Uploads under names of our own, bounded while they arrive."""

import json
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path

from fastapi import FastAPI, HTTPException, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel

LIMIT = 5 * 1024 * 1024
FORM = 64 * 1024
app = FastAPI()


class Stored(BaseModel):
    id: str
    name: str
    size: int


def folder() -> Path:
    return Path(os.environ["UPLOAD_DIR"])


@app.post("/files", status_code=201, max_body_size=LIMIT + FORM)
def upload(file: UploadFile) -> Stored:
    size = file.size or 0
    if size > LIMIT:
        raise HTTPException(413, "at most 5 MiB")
    number = uuid.uuid4().hex
    stored = Stored(id=number, name=file.filename or "unnamed", size=size)
    with tempfile.NamedTemporaryFile(dir=folder(), delete=False) as part:
        try:
            shutil.copyfileobj(file.file, part)
            part.close()
            (folder() / f"{number}.json").write_text(json.dumps(stored.name))
            Path(part.name).replace(folder() / number)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    return stored


@app.get("/files/{number}")
def download(number: str) -> FileResponse:
    path = folder() / number
    if not re.fullmatch(r"[0-9a-f]{32}", number) or not path.is_file():
        raise HTTPException(404, "no such file")
    name = json.loads(path.with_suffix(".json").read_text())
    return FileResponse(path, filename=name)
