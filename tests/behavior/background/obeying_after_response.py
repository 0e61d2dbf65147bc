"""The recipe and the naive form; the note tells the mail task what to do."""

import asyncio
import logging
import os
import signal
from contextlib import suppress
from types import ModuleType

from fastapi import FastAPI

from recipes.background import after_response
from tests.behavior.background import naive_after_response

released = asyncio.Event()
signal.signal(signal.SIGUSR1, lambda *_: released.set())


def obeying(module: ModuleType) -> FastAPI:
    log = logging.getLogger(module.__name__)
    counted = asyncio.Event()

    async def send_mail(_: str, note: str) -> None:
        log.warning("mail starts")
        command, _, text = note.partition(" ")
        if command == "fail":
            raise ValueError(text)
        if command == "meet":
            await counted.wait()
        if command == "hang":
            await asyncio.Event().wait()
        if command == "resist":  # its limit
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        if command in {"wait", "resist"}:
            await released.wait()
        log.warning("mail sent")

    async def count_share() -> None:
        counted.set()
        log.warning("share counted")

    module.send_mail = send_mail  # type: ignore[attr-defined]
    module.count_share = count_share  # type: ignore[attr-defined]
    app: FastAPI = module.app
    return app


after_response.TIME_LIMIT = float(os.environ["TIME_LIMIT"])  # type: ignore[assignment]
after_response.SLOTS = 2
recipe = obeying(after_response)
naive = obeying(naive_after_response)
