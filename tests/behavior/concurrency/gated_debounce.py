"""A debouncer whose saves are told in the log, and end when the test says so."""

import asyncio
import os
from importlib import import_module

from fastapi import FastAPI

module = import_module(os.environ["TARGET"])
for setting in os.environ.get("SETTINGS", "").split():
    name, _, value = setting.partition("=")
    vars(module)[name] = type(vars(module)[name])(float(value))
if "debouncer" in vars(module):
    module.debouncer.delay = 0.7
gate = asyncio.Event()


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
