"""A generator opens the file after the 200, in the event loop; any path will do."""

import os

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.get("/files/{name:path}")
async def download(name: str):
    async def blocks():
        with open(f"{os.environ['DOWNLOAD_DIR']}/{name}", "rb") as file:
            while block := file.read(8192):
                yield block

    return StreamingResponse(
        blocks(),
        media_type="application/octet-stream",
        headers={"Content-Disposition": f"attachment; filename={name}"},
    )
