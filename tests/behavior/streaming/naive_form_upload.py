"""The client names the path, at any size, and the copy blocks the event loop."""

import os
import shutil
from pathlib import Path

from fastapi import FastAPI, UploadFile
from fastapi.responses import FileResponse

app = FastAPI()
folder = Path(os.environ.get("UPLOAD_DIR", "/tmp"))


@app.post("/files", status_code=201)
async def upload(file: UploadFile):
    with open(folder / file.filename, "wb") as copy:
        shutil.copyfileobj(file.file, copy)
    return {"id": file.filename}


@app.get("/files/{name}")
async def download(name: str):
    return FileResponse(folder / name)
