"""databases/concurrent_writes with a short wait for a lock; no answer to `x-hold`."""

import asyncio
import logging
import os

from starlette.types import Message, Receive, Scope, Send

from recipes.databases import concurrent_writes

concurrent_writes.COMMAND_TIMEOUT = float(os.environ["COMMAND_TIMEOUT"])


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    async def hold(_: Message) -> None:
        logging.getLogger(__name__).warning("held")
        await asyncio.Event().wait()

    held = b"x-hold" in dict(scope.get("headers", ()))
    await concurrent_writes.app(scope, receive, hold if held else send)
