"""Serves the module that TARGET names with sections that a test controls.

`PUT /sections` with what each section does: `fails`, `is cancelled`, `waits` (until the
next `PUT`), `many`, `no note`, `surrogate` or `hostile`.
"""

import asyncio
import importlib
import logging
import os
from typing import Any

target: Any = importlib.import_module(os.environ["TARGET"])
target.FETCH_SECONDS = float(os.environ.get("FETCH_SECONDS", "20"))
how: dict[str, str] = {}
changed = asyncio.Event()
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
    if does == "is cancelled":
        raise asyncio.CancelledError
    if does == "waits":
        try:
            await changed.wait()
        except asyncio.CancelledError:
            log("cancelled %s", name)
            raise
    text = TEXTS.get(does or "", f"row of {name}")
    count = 10**6 if does == "many" else 1
    row: dict[str, object] = {"title": text}
    if does != "no note":
        row["note"] = text
    return [row] * min(count, limit)


async def change(does: dict[str, str]) -> None:
    global changed  # noqa: PLW0603 - for those that wait now
    how.clear()
    how.update(does)
    changed.set()
    changed = asyncio.Event()


target.fetch_rows = fetch_rows
app = target.app
app.put("/sections")(change)
