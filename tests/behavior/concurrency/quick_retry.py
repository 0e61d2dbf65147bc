"""concurrency/retry without waits, with fewer tokens, and with a POST without a key."""

import stamina
from fastapi import Request

from recipes.concurrency import retry
from recipes.concurrency.retry import Shop, Stock

retry.TOKENS = 10
stamina.set_testing(True, attempts=3)
app = retry.app


@app.post("/without-key")
async def without_key(request: Request) -> Stock:
    shop: Shop = request.state.shop
    return await shop.call("POST", "/stock/without-key", {})


@app.post("/reset")
async def reset(request: Request) -> None:
    shop: Shop = request.state.shop
    shop._tokens = retry.TOKENS  # noqa: SLF001 - as at a start
