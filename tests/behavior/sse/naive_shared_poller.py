"""Each reader polls on its own and hears the same again and again, and the first error of
the backend ends the stream, behind a 200."""

import asyncio
import json

from fastapi import FastAPI
from sse_starlette.sse import EventSourceResponse

INTERVAL = 1.0
app = FastAPI()


async def fetch_prices():
    return {"tea": 450}


@app.get("/prices")
async def prices():
    async def updates():
        while True:
            update = await fetch_prices()
            yield {"event": "update", "data": json.dumps(update)}
            await asyncio.sleep(INTERVAL)

    return EventSourceResponse(updates())
