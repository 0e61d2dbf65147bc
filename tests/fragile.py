"""An app with an error that only some input meets: schemathesis must find it."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/shares/{people}")
async def shares(people: int) -> float:
    return 1 / people
