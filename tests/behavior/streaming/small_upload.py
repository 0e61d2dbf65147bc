"""streaming/upload with limits that are soon reached, and a route beside it."""

from fastapi import FastAPI

from recipes.streaming import upload

BLOCK = upload.BLOCK = 64 * 1024
MAX_BYTES = 4 * BLOCK
MAX_UPLOADS = upload.MAX_UPLOADS = 4

app = FastAPI(lifespan=upload.lifespan)
app.post("/files", status_code=201, max_body_size=MAX_BYTES)(upload.upload)
