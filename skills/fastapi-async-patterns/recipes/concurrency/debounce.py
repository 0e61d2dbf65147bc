# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Debounce saves: many values come, the newest of each key is saved once.

`put` keeps the value, and the client gets a 202 at once. One task per key waits until
no value has come for `QUIET_SECONDS`, at most `MAX_WAIT_SECONDS`, and saves the newest.
A save that has started is finished before the next. A stop saves what still waits.

**Use when** only the last of many values counts: autosave, a search index, a webhook.
**Not when** a value must not be lost: this 202 only means "received", and a crash or
SIGKILL loses what waits. Then use background/durable_outbox.

Gotchas:

- Cancelling the previous task on each value starves: while values keep coming, nothing
  is saved. It also cuts a save in half, and the request that awaits it gets a 500.
- Pass a function, not a coroutine. One that is dropped before it starts is a
  "RuntimeWarning: coroutine 'save' was never awaited".
- Put the user into the key, or the value of one replaces that of another.
- A save that fails is logged and its value lost: retry inside `save`.
- Not covered: several workers (they save a key in any order), reading what waits.

Try it:

    PUT /drafts/letter {"text": "Dear Ada"}  # 202
    GET /drafts/letter  # null or an older text until a second has passed

Keywords: autosave, coalesce, throttle, trailing edge, CancelledError, never awaited
Related: background/after_response, background/durable_outbox, caching/single_flight
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Path, Request

QUIET_SECONDS = 1.0
MAX_WAIT_SECONDS = 5.0
SAVE_SECONDS = 5.0
MAX_KEYS = 1000
MAX_SAVES = 10  # at a time
STOP_SECONDS = 8.0  # then the rest is given up: Docker sends SIGKILL after 10

logger = logging.getLogger(__name__)


class Debouncer:
    def __init__(self, save: Callable[[str, str], Awaitable[None]]) -> None:
        self._save = save
        self._newest: dict[str, tuple[float, str]] = {}  # with the time when it came
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_SAVES)
        self._stopping = asyncio.Event()

    def put(self, key: str, value: str) -> None:
        if key not in self._tasks and len(self._tasks) >= MAX_KEYS:
            raise asyncio.QueueFull
        self._newest[key] = time.monotonic(), value
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._run(key))

    async def _run(self, key: str) -> None:
        try:
            while key in self._newest:  # again if a value came during the save
                await self._quiet(key)
                try:
                    async with self._slots, asyncio.timeout(SAVE_SECONDS):
                        await self._save(key, self._newest.pop(key)[1])
                except Exception:
                    logger.exception("%r is not saved", key)
        except asyncio.CancelledError:
            logger.warning("%r is not saved: cancelled", key)
            self._newest.pop(key, None)
            raise
        finally:
            del self._tasks[key]  # the next `put` starts another

    async def _quiet(self, key: str) -> None:
        latest = time.monotonic() + MAX_WAIT_SECONDS
        while not self._stopping.is_set():
            due = min(self._newest[key][0] + QUIET_SECONDS, latest)
            if (seconds := due - time.monotonic()) <= 0:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)

    async def aclose(self) -> None:
        self._stopping.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*self._tasks.values(), return_exceptions=True)


async def save(saved: dict[str, str], name: str, text: str) -> None:  # demo: yours
    await asyncio.sleep(0.1)
    saved[name] = text


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    saved: dict[str, str] = {}  # demo: your database
    async with aclosing(Debouncer(partial(save, saved))) as drafts:
        yield {"drafts": drafts, "saved": saved}


app = FastAPI(lifespan=lifespan)
Name = Annotated[str, Path(pattern="^[a-z0-9-]{1,40}$")]
Text = Annotated[str, Body(embed=True, max_length=10_000)]


@app.put("/drafts/{name}", status_code=202, max_body_size=64 * 1024)
async def write_draft(request: Request, name: Name, text: Text) -> None:
    drafts: Debouncer = request.state.drafts
    try:
        drafts.put(name, text)
    except asyncio.QueueFull as error:
        raise HTTPException(503, "Try again", {"Retry-After": "1"}) from error


@app.get("/drafts/{name}")
async def read_draft(request: Request, name: Name) -> str | None:
    saved: dict[str, str] = request.state.saved
    return saved.get(name)


# --- evidence ---
def main() -> None:
    from unittest.mock import AsyncMock, patch

    from fastapi.testclient import TestClient

    save = AsyncMock()
    with patch.dict(globals(), save=save), TestClient(app) as client:
        for name, text in (("ann", "D"), ("bob", "Hi"), ("ann", "De"), ("ann", "Dear")):
            client.put(f"/drafts/{name}", json={"text": text})
    print([call.args[1:] for call in save.await_args_list])
    # > [('ann', 'Dear'), ('bob', 'Hi')]


if __name__ == "__main__":
    main()
