"""Serves the module that TARGET names, with the faults that FAULTS names.

Recipe and naive form reach their database through `asyncio.to_thread`. Each such call
is logged by what it does (connect, CREATE, INSERT, DELETE, close), and may `raise`,
`hang` or `block` its thread until the file GATE exists, as in `INSERT:block`.
A limit is short only for what hangs or blocks, or waits for a lock of the database.
"""

import asyncio
import importlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = {"connect", "CREATE", "INSERT", "DELETE", "close"}
LONG, SHORT = 20.0, 0.1

_really = asyncio.to_thread
_faults = dict(pair.split(":") for pair in os.environ["FAULTS"].split(",") if pair)


def _block() -> None:
    while not Path(os.environ["GATE"]).exists():
        time.sleep(0.02)
    print("the thread has ended", flush=True)  # noqa: T201


async def _to_thread(
    function: Callable[..., object],
    *args: Any,
    **options: object,
) -> object:
    name = function.__name__
    step = args[0].split()[0] if name == "execute" else name
    if step not in STEPS:
        return await _really(function, *args, **options)
    if "timeout" in options:
        options["timeout"] = SHORT
    print(f"step: {step}", flush=True)  # noqa: T201 - the test reads it
    match _faults.get(step):
        case "raise":
            raise sqlite3.OperationalError(f"{step} does not work")
        case "hang":
            try:
                await asyncio.Event().wait()
            finally:
                target.CLOSE_SECONDS = LONG
        case "block":
            await _really(_block)
    result = await _really(function, *args, **options)
    if step == "CREATE" and _faults.get("INSERT") in {"hang", "block"}:
        target.OPEN_SECONDS = SHORT
    return result


asyncio.to_thread = _to_thread  # type: ignore[assignment]
target: Any = importlib.import_module(os.environ["TARGET"])
target.OPEN_SECONDS = LONG
target.CLOSE_SECONDS = SHORT if _faults.get("DELETE") == "hang" else LONG
app = target.app
