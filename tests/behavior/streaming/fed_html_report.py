"""Serves the module that TARGET names with sections that a test controls.

`PUT /sections/{name}?how=…`: how is `fails`, `waits` (for `POST /release`), `many`,
`surrogate` or `hostile`.
"""

import asyncio
import importlib
import logging
import os
from typing import Any

target: Any = importlib.import_module(os.environ["TARGET"])
target.FETCH_SECONDS = float(os.environ.get("FETCH_SECONDS", "20"))
how: dict[str, str] = {}
gate = asyncio.Event()
log = logging.getLogger(__name__).warning
TEXTS = {
    "hostile": """'"><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7*7 }}""",
    "surrogate": "\ud800",
}


async def fetch_rows(name: str, limit: int) -> list[dict[str, object]]:
    log("fetching %s", name)
    does = how.get(name)
    if does == "fails":
        raise ConnectionError("the backend is down")
    if does == "waits":
        try:
            await gate.wait()
        except asyncio.CancelledError:
            log("cancelled %s", name)
            raise
    text = TEXTS.get(does or "", f"row of {name}")
    count = 10**6 if does == "many" else 1
    return [{"title": text, "note": text} for _ in range(min(count, limit))]


async def change(name: str, does: str) -> None:
    how[name] = does


async def release() -> None:
    gate.set()


target.fetch_rows = fetch_rows
app = target.app
app.put("/sections/{name}")(change)
app.post("/release")(release)
