"""An app with an error that valid input meets: schemathesis must find it."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/fragile/{number}")
async def fragile(number: int) -> None:
    raise RuntimeError(number)
