"""Pure Python in threads: jobs share one core, and each /health waits for the GIL."""

from math import isqrt

from fastapi import FastAPI

app = FastAPI()


@app.get("/primes")
def primes(below: int):
    return sum(all(n % d for d in range(2, isqrt(n) + 1)) for n in range(2, below))


@app.get("/health")
async def health():
    return "ok"
