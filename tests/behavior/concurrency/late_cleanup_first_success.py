"""concurrency/first_success and its naive form with calls that clean up."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from recipes.concurrency import first_success
from tests.behavior.concurrency import naive_first_success

logger = logging.getLogger(__name__)
Ask = Callable[..., Coroutine[Any, Any, Any]]


def logged(ask: Ask) -> Ask:
    async def call(*args: object) -> object:
        try:
            return await ask(*args)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            logger.warning("cleaned up")
            raise

    return call


first_success.ask = logged(first_success.ask)
naive_first_success.ask = logged(naive_first_success.ask)
inner = naive_first_success.app if os.environ.get("NAIVE") else first_success.app


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    async def log_start(message: Message) -> None:
        if message["type"] == "http.response.start":
            logger.warning("response starts")
        await send(message)

    await inner(scope, receive, log_start)
