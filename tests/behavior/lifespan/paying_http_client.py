"""lifespan/http_client adapted to a POST that must not be done twice."""

from typing import Annotated

import httpx2
from fastapi import Header, Request
from pydantic import BaseModel

from recipes.lifespan import http_client
from tests.behavior.lifespan import quick_http_client

app = quick_http_client.app


class Receipt(BaseModel):
    order: int


@app.post("/pay/{order}")
async def pay(
    request: Request, order: int, key: Annotated[str | None, Header()] = None
) -> Receipt:
    client: httpx2.AsyncClient = request.state.client
    return await http_client.fetch(
        client,
        "POST",
        "/charges",
        Receipt,
        {402: "Card declined"},
        json={"order": order},
        headers={"Idempotency-Key": key} if key else None,
    )
