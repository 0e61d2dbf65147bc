"""An app with an error that only some input meets: schemathesis must find it."""

import math

from fastapi import FastAPI

app = FastAPI()


@app.get("/roots/{number}")
async def root(number: int) -> float:
    return math.sqrt(number)
