# mypy: ignore-errors
"""One service after the other, a client for each request, the default timeout."""

import os

import httpx2
from fastapi import FastAPI, HTTPException

app = FastAPI()
SERVICES = {
    name: os.environ[f"{name.upper()}_URL"] for name in ("profile", "orders", "tips")
}


@app.get("/dashboard/{user}")
async def dashboard(user: str):
    result = {}
    failed = []
    async with httpx2.AsyncClient(timeout=5) as client:
        for name, url in SERVICES.items():
            try:
                response = await client.get(f"{url}/{user}")
                response.raise_for_status()
                result[name] = response.json()
            except Exception:
                result[name] = None
                failed.append(name)
    if len(failed) == 3:
        raise HTTPException(502, "All services failed")
    return {**result, "failed": sorted(failed)}
