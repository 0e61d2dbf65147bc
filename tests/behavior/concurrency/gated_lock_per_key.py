"""Counters whose reads are told in the log, and go on when the test says so."""

import asyncio
import os
from importlib import import_module

from fastapi import FastAPI

module = import_module(os.environ["TARGET"])
for setting in os.environ.get("SETTINGS", "").split():
    name, _, value = setting.partition("=")
    vars(module)[name] = type(vars(module)[name])(float(value))
gate = asyncio.Event()


async def read(store: dict[str, int], name: str) -> int:
    count = store.get(name, 0)
    print(f"read {name}.", flush=True)  # noqa: T201 - into the server's log
    if name == "broken":
        raise ConnectionError("no store")
    if name.startswith("gated"):
        await gate.wait()
    return count


vars(module)["read"] = read
app: FastAPI = module.app


@app.post("/release")
async def release() -> None:
    gate.set()


@app.post("/shut")
async def shut() -> None:
    gate.clear()
