"""Serves the module that TARGET names with a backend that a test controls.

`PUT /backend?tea=…&how=…` says what the next polls find: how is `up`, `down`, `hangs`,
`cancelled` or `odd`; what hangs does so until the next `PUT`. `big` makes
each answer large. `GET /polls` counts them.
"""

import asyncio
import importlib
import os
from typing import Any

target: Any = importlib.import_module(os.environ["TARGET"])
target.INTERVAL = 0.02
target.POLL_TIMEOUT = float(os.environ.get("POLL_TIMEOUT", "20"))
backend: dict[str, Any] = {"tea": 450, "how": os.environ.get("HOW", "up"), "big": 0}
polls = 0
changed = asyncio.Event()


async def fetch_prices() -> dict[str, Any]:
    global polls  # noqa: PLW0603 - counted for the whole process
    polls += 1
    found: dict[str, Any] = {"tea": backend["tea"]}
    if backend["how"] == "down":
        raise ConnectionError("the backend is down")
    if backend["how"] == "hangs":
        await changed.wait()
    if backend["how"] == "cancelled":
        raise asyncio.CancelledError
    if backend["how"] == "odd":
        found["tea"] = float("nan")
    if backend["big"]:
        found |= {"tea": polls, "big": "x" * backend["big"]}
    return found


async def change(tea: int = 450, how: str = "up", big: int = 0) -> None:
    global changed  # noqa: PLW0603 - for those that hang now
    backend.update(tea=tea, how=how, big=big)
    changed.set()
    changed = asyncio.Event()


async def count() -> int:
    return polls


target.fetch_prices = fetch_prices
app = target.app
app.put("/backend")(change)
app.get("/polls")(count)
