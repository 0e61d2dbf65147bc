"""A debouncer whose saves are told in the log, and end when the test says so.

So does the naive form's delay.
"""

import asyncio
import os
from importlib import import_module
from types import SimpleNamespace

from fastapi import FastAPI

module = import_module(os.environ["TARGET"])
for setting in os.environ.get("SETTINGS", "").split():
    name, _, value = setting.partition("=")
    vars(module)[name] = type(vars(module)[name])(float(value))
gate, quiet = asyncio.Event(), asyncio.Event()


async def delay(_: float) -> None:
    await quiet.wait()


if "debouncer" in vars(module):
    naive = SimpleNamespace(create_task=asyncio.create_task, sleep=delay)
    vars(module)["asyncio"] = naive


async def save(*args: object) -> None:
    *_, name, text = args
    print(f"saving {name} {text}.", flush=True)  # noqa: T201 - into the server's log
    if text == "fails":
        raise ConnectionError("no database")
    if "gated" in str(text):
        await gate.wait()
    print(f"saved {name} {text}.", flush=True)  # noqa: T201


vars(module)["save"] = save
app: FastAPI = module.app


@app.post("/release")
async def release() -> None:
    gate.set()


@app.post("/quiet")
async def end_delays() -> None:
    quiet.set()
