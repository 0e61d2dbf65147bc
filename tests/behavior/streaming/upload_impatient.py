"""streaming/upload with a short patience, and with another route in its app."""

from fastapi import Request

from recipes.streaming import upload

upload.BLOCK = 64 * 1024
upload.BLOCK_SECONDS = 1
app = upload.app


@app.post("/other")
async def other(request: Request) -> int:
    return len(await request.body())
