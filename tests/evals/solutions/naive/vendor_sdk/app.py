# mypy: ignore-errors
"""Calls the blocking library in the event loop."""

import json
import os
import urllib.parse
import urllib.request

from fastapi import FastAPI, HTTPException
from fastapi.responses import PlainTextResponse

app = FastAPI()


def vendor_quote(symbol: str) -> float:
    url = f"{os.environ['VENDOR_URL']}/quote/{urllib.parse.quote(symbol, safe='')}"
    with urllib.request.urlopen(url) as response:
        return json.loads(response.read())["price"]


@app.get("/quote/{symbol}")
async def get_quote(symbol: str):
    try:
        return {"symbol": symbol, "price": vendor_quote(symbol)}
    except Exception:
        raise HTTPException(502, "Vendor error")


@app.get("/health")
async def health():
    return {"status": "ok"}


@app.get("/terms", response_class=PlainTextResponse)
async def terms():
    with open(os.environ["TERMS_FILE"]) as f:
        return f.read()
