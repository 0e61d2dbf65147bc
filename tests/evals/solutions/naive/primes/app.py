# mypy: ignore-errors
"""Counts in the event loop."""

from fastapi import FastAPI, Path

app = FastAPI()


def count_primes(below: int) -> int:
    found = 0
    for number in range(2, below):
        divisor = 2
        while divisor * divisor <= number and number % divisor:
            divisor += 1
        found += divisor * divisor > number
    return found


@app.get("/primes/{below}")
async def primes(below: int = Path(ge=1, le=3_000_000)):
    return {"below": below, "count": count_primes(below)}


@app.get("/health")
async def health():
    return {"status": "ok"}
