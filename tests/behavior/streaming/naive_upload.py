"""The client chooses the path, and all of the file is in memory at once."""

import os
from pathlib import Path

from fastapi import FastAPI, UploadFile

app = FastAPI()
directory = Path(os.environ.get("UPLOAD_DIR", "/tmp"))


@app.post("/files", status_code=201)
async def upload(file: UploadFile):
    path = directory / file.filename
    with open(path, "wb") as copy:
        copy.write(await file.read())
    return {"path": path}


@app.get("/ping")
async def ping():
    return "pong"
