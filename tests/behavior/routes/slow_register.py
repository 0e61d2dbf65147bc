"""Both forms of routes/blocking_library with a register that is down until "/up"."""

import asyncio
import gc
import os
import threading
import weakref
from contextlib import suppress
from contextvars import ContextVar

from anyio import CapacityLimiter, to_thread
from anyio.to_thread import current_default_thread_limiter
from fastapi import Request

from recipes.routes import blocking_library
from recipes.routes.blocking_library import Bulkhead, Register, app
from tests.behavior.routes.naive_blocking_library import app as naive_app
from tests.behavior.routes.naive_blocking_library import register as naive_register

THREADS = blocking_library.THREADS
WAITING = blocking_library.WAITING
blocking_library.CALL_SECONDS = float(os.environ.get("CALL_SECONDS", "20"))  # type: ignore[assignment]

user = ContextVar("user", default="nobody")
limiter = CapacityLimiter(THREADS)


class Counter:
    """How many calls were in the register at once."""

    def __init__(self) -> None:
        self.now = self.most = self.calls = 0
        self.lock = threading.Lock()

    def call(self, register: Register) -> None:
        with self.lock:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)
        register.up.wait(20)
        with self.lock:
            self.now -= 1


counters = {"bulkhead": Counter(), "limiter": Counter()}
kept: weakref.WeakSet[object] = weakref.WeakSet()  # calls that something refers to


@app.get("/abandoned/{how}")
async def abandoned(request: Request, how: str) -> None:
    """Lose patience at once."""
    bulkhead: Bulkhead = request.state.bulkhead
    register: Register = request.state.register

    def call() -> None:
        counters[how].call(register)

    kept.add(call)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.02):
            if how == "bulkhead":
                await bulkhead.run(call)
            else:
                await to_thread.run_sync(call, limiter=limiter)


@app.get("/most")
async def most() -> dict[str, int]:
    found = {how: counter.most for how, counter in counters.items()}
    return {"calls": counters["bulkhead"].calls} | found


@app.get("/kept")
async def number_kept() -> int:
    gc.collect()
    return len(kept)


@app.get("/user")
async def in_context(request: Request) -> str:
    bulkhead: Bulkhead = request.state.bulkhead
    user.set("somebody")
    return await bulkhead.run(user.get)


@app.get("/down")
async def down(request: Request) -> None:
    request.state.register.up.clear()


@app.get("/up")
async def up(request: Request) -> None:
    request.state.register.up.set()


@naive_app.get("/busy")
async def naive_busy() -> int:
    return current_default_thread_limiter().borrowed_tokens


@naive_app.get("/down")
async def naive_down() -> None:
    naive_register.up.clear()


@naive_app.get("/up")
async def naive_up() -> None:
    naive_register.up.set()
