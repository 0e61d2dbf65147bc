# mypy: ignore-errors
"""Trusts the file name, and looks at the size when it is too late."""

import os

from fastapi import FastAPI, File, HTTPException, UploadFile
from fastapi.responses import FileResponse

UPLOAD_DIR = os.environ["UPLOAD_DIR"]
MAX_SIZE = 5 * 1024 * 1024
app = FastAPI()


@app.post("/files", status_code=201)
async def upload(file: UploadFile = File(...)):
    content = await file.read()
    if len(content) > MAX_SIZE:
        raise HTTPException(413, "File too large")
    path = os.path.join(UPLOAD_DIR, file.filename)
    with open(path, "wb") as f:
        f.write(content)
    return {"id": file.filename, "name": file.filename, "size": len(content)}


@app.get("/files/{file_id}")
async def download(file_id: str):
    path = os.path.join(UPLOAD_DIR, file_id)
    if not os.path.exists(path):
        raise HTTPException(404, "File not found")
    return FileResponse(path)
