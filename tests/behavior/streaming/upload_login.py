"""A login in front of `UploadFile`, and in front of a raw body."""

import logging

from fastapi import Depends, FastAPI, HTTPException, Request, UploadFile


async def login(request: Request) -> None:
    logging.getLogger("uvicorn.error").info("login for %s", request.url.path)
    raise HTTPException(401)


app = FastAPI(dependencies=[Depends(login)])


@app.post("/form")
async def form(file: UploadFile) -> str | None:
    return file.filename


@app.post("/body")
async def body(request: Request) -> bytes:
    return await request.body()
