"""The recipe and the naive form; the item tells `send` what to do."""

import asyncio
import logging
import os
import signal
from collections import Counter
from types import ModuleType

from fastapi import FastAPI

from recipes.background import durable_outbox
from tests.behavior.background import naive_durable_outbox

released = asyncio.Event()
attempts: Counter[int] = Counter()
signal.signal(signal.SIGUSR1, lambda *_: released.set())


def obeying(module: ModuleType) -> FastAPI:
    log = logging.getLogger(module.__name__)

    async def send(key: int, email: str, message: str) -> None:
        item = message.partition(": ")[2]
        attempts[key] += 1
        log.warning("<%s> starts, attempt %s", key, attempts[key])
        if item == "wait":
            await released.wait()
        if item == "hang":
            await asyncio.Event().wait()
        if item == "cancelled":
            future: asyncio.Future[None] = asyncio.Future()
            future.cancel()
            await future
        if item == "fail" or (item == "fail twice" and attempts[key] < 3):
            raise ConnectionError(f"no route to {email} \0\ud800")
        log.warning("<%s> sent", key)

    vars(module)["send"] = send
    app: FastAPI = module.app
    return app


durable_outbox.SEND_SECONDS = float(os.environ["SEND_SECONDS"])
durable_outbox.RETRY_SECONDS = float(os.environ["RETRY_SECONDS"])
durable_outbox.COMMAND_TIMEOUT = 1.0
durable_outbox.POLL_SECONDS = 0.05
durable_outbox.MAX_ATTEMPTS = 3
recipe = obeying(durable_outbox)
naive = obeying(naive_durable_outbox)
