"""concurrency/first_success and its naive form: each request names its services.

The calls tell when they have cleaned up, the responses when they start.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recipes.concurrency import first_success
from tests.behavior.concurrency import naive_first_success

logger = logging.getLogger(__name__)
Ask = Callable[..., Coroutine[Any, Any, Any]]


def logged(ask: Ask) -> Ask:
    @wraps(ask)
    async def call(client: object, service: str, currency: str) -> object:
        try:
            return await ask(client, service, currency)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            logger.warning("/rates/%s: cleaned up", currency)
            raise

    return call


def choosing(inner: ASGIApp) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def log_start(message: Message) -> None:
            if message["type"] == "http.response.start":
                logger.warning("%s: response starts", scope["path"])
            await send(message)

        if scope["type"] == "http":
            services = dict(scope["headers"])[b"services"].decode()
            scope["state"]["services"] = services.split()  # the recipe's
            os.environ["RATE_URLS"] = services  # the naive form's
        await inner(scope, receive, log_start)

    return app


first_success.DEADLINE = float(os.environ["DEADLINE"])  # type: ignore[assignment]
first_success.CONNECTIONS = 5
first_success.ask = logged(first_success.ask)
naive_first_success.ask = logged(naive_first_success.ask)
recipe = choosing(first_success.app)
naive = choosing(naive_first_success.app)
