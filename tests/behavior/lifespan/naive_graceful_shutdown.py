"""Nothing after `yield` runs until all streams have ended, and they wait for just that:
the process stays alive, refuses connections, and `/ready` never said so."""

import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.stopping = False
    yield
    app.state.stopping = True


app = FastAPI(lifespan=lifespan)


@app.get("/ready")
async def ready():
    return {"stopping": app.state.stopping}


@app.get("/ticks", response_class=EventSourceResponse)
async def ticks():
    while not app.state.stopping:
        yield "tick"
        await asyncio.sleep(1)
