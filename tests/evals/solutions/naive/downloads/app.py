# mypy: ignore-errors
"""Joins the path, reads the file, and writes the name into the header."""

import os

from fastapi import FastAPI, HTTPException
from fastapi.responses import Response

app = FastAPI()
FILES_DIR = os.environ["FILES_DIR"]


@app.get("/files/{file_path:path}")
async def download(file_path: str):
    path = os.path.abspath(os.path.join(FILES_DIR, file_path))
    if not path.startswith(FILES_DIR) or not os.path.exists(path):
        raise HTTPException(404, "File not found")
    with open(path, "rb") as f:
        content = f.read()
    filename = os.path.basename(path)
    return Response(
        content,
        media_type="application/octet-stream",
        headers={"Content-Disposition": f"attachment; filename={filename}"},
    )
