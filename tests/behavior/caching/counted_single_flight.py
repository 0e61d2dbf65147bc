"""Serves the module that TARGET names with a `count_orders` that is counted.

The city's name says what happens: with `gated` in it, block until `POST /release`,
at most for GATE seconds; with `broken` or `missing`, raise. LIMITS replaces
constants, as in `TTL_SECONDS=1 MAX_VALUES=5`.
"""

import importlib
import os
import threading
from collections import Counter
from typing import Any

from fastapi import HTTPException

target: Any = importlib.import_module(os.environ["TARGET"])
started: Counter[str] = Counter()
finished: Counter[str] = Counter()
gate = threading.Event()


def count_orders(city: str) -> int:
    started[city] += 1
    os.write(1, f"computing {city}\n".encode())  # one line, also from many threads
    if "gated" in city:
        gate.wait(float(os.environ.get("GATE", "15")))
    if "broken" in city:
        raise RuntimeError("the database is down")
    if "missing" in city:
        raise HTTPException(404)
    finished[city] += 1
    return 0 if city == "atlantis" else len(city)


target.count_orders = count_orders
for limit in os.environ.get("LIMITS", "").split():
    name, _, number = limit.partition("=")
    setattr(target, name, type(getattr(target, name))(number))
app = target.app


async def counts(city: str) -> tuple[int, int]:
    return started[city], finished[city]


async def release() -> None:
    gate.set()


app.get("/counts/{city}")(counts)
app.post("/release")(release)
