"""The client leaves, and the model still works to the end, for nobody: as often as somebody presses reload."""

import asyncio

from fastapi import Body, FastAPI

app = FastAPI()
usage = {"started": 0, "cancelled": 0, "charged": 0}
model_is_done = asyncio.Event()


@app.post("/answers")
async def answer(prompt: str = Body(embed=True)):
    usage["started"] += 1
    try:
        await model_is_done.wait()
    except asyncio.CancelledError:
        usage["cancelled"] += 1
        raise
    usage["charged"] += 1
    return "Because."


@app.get("/usage")
async def show_usage():
    return usage


@app.post("/finish")
async def finish():
    model_is_done.set()
