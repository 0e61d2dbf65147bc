# mypy: ignore-errors
"""A dict in the process, which forgets what is falsy and lets a crowd through."""

import os
import time

import httpx2
from fastapi import FastAPI, HTTPException

app = FastAPI()
cache = {}
TTL = 60


@app.get("/scores/{player}")
async def get_score(player: str):
    cached = cache.get(player)
    if cached and cached[1] and time.time() - cached[0] < TTL:
        return {"player": player, "score": cached[1]}
    async with httpx2.AsyncClient(timeout=30) as client:
        response = await client.get(f"{os.environ['SCORES_URL']}/players/{player}")
    if response.status_code == 404:
        raise HTTPException(404, "Player not found")
    if response.status_code != 200:
        raise HTTPException(502, "Upstream error")
    score = response.json()
    cache[player] = (time.time(), score)
    return {"player": player, "score": score}
