"""routes/client_disconnect with a model and a bank that wait for the test."""

import asyncio
import logging
from collections.abc import AsyncIterator

from fastapi import Depends, HTTPException, Request, Response
from starlette.middleware.base import RequestResponseEndpoint
from starlette.types import Receive, Scope, Send

from recipes.routes import client_disconnect
from recipes.routes.client_disconnect import Model, while_connected

inner = client_disconnect.app
logger = logging.getLogger(__name__)
logging.basicConfig(level=logging.INFO)
model_is_done = asyncio.Event()
bank_is_done = asyncio.Event()
busy = 0


class Held(Model):
    async def answer(self, prompt: str) -> str:
        self.usage["started"] += 1
        try:
            await model_is_done.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # cleanup may await
            self.usage["cancelled"] += 1
            if prompt == "stubborn":
                return "Half of it."
            raise
        if prompt == "too hard":
            raise HTTPException(418)
        if prompt == "timeout":
            raise TimeoutError("no connection free")
        return "Because."

    async def charge(self) -> None:
        logger.info("charging")
        await bank_is_done.wait()
        await super().charge()


client_disconnect.Model = Held  # type: ignore[misc]  # for the lifespan


@inner.post("/finish")
async def finish() -> None:
    model_is_done.set()


@inner.post("/bank-is-done")
async def bank() -> None:
    bank_is_done.set()


@inner.post("/reset")
async def reset(request: Request) -> None:
    """Wait for the requests of the last test, then be as new."""
    model_is_done.set()
    bank_is_done.set()
    while busy > 1:
        await asyncio.sleep(0)
    model_is_done.clear()
    bank_is_done.clear()
    model: Model = request.state.model
    model.usage = dict.fromkeys(model.usage, 0)


async def scoped() -> AsyncIterator[None]:
    try:
        yield
    except HTTPException as error:
        logger.info("dependency saw %s", error.status_code)
        raise


@inner.api_route("/no-body", methods=["GET", "POST"], dependencies=[Depends(scoped)])
async def no_body(request: Request) -> str:
    """It reads no body, though the client may send one."""
    model: Model = request.state.model
    async with while_connected(request):
        return await model.answer("")


@inner.middleware("http")
async def old_middleware(
    request: Request, call_next: RequestResponseEndpoint
) -> Response:
    if "middleware" not in request.query_params:
        return await call_next(request)
    response = await call_next(request)
    logger.info("middleware saw %s", response.status_code)
    return response


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    global busy  # noqa: PLW0603 - a counter of this process
    busy += scope["type"] == "http"
    try:
        await inner(scope, receive, send)
    finally:
        busy -= scope["type"] == "http"
