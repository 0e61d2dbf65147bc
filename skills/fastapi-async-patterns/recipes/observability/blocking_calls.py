# /// script
# requires-python = ">=3.11"
# dependencies = ["aiomonitor>=0.7.1", "fastapi[standard]>=0.165"]
# ///
"""Find the call that blocks the event loop.

A thread asks the event loop for an answer, again and again. If none comes in time, it
logs the stack of the loop's thread while the call still blocks: file, line, and how it
got there. `/loop` tells how often that happens, and how long the loop takes to answer.

**Use when** all requests are slow at once, or health checks time out under load.
**Not when** a single request is slow while others are not: trace that request.

Gotchas:

- A thousand tasks that are ready at once stall the loop like one long call: the stack
  shows one of them. Look at several stacks before you blame a line.
- If a stack ends in `select` or `asyncio/runners.py`, the loop was idle: other threads
  held the GIL, or the process got no CPU.
- A call that holds the GIL, such as a bad regular expression, also stops this thread:
  it is counted, but often not shown. `faulthandler.dump_traceback_later` shows it.
- In tests, `with blockbuster_ctx():` raises "BlockingError: Blocking call to
  time.sleep". It knows calls that wait, not those that compute.
- `PYTHONASYNCIODEBUG=1` logs "Executing <Task ...> took 0.300 seconds", only afterwards
  and without the line.
- With `AIOMONITOR_PORT=20101`, `telnet 127.0.0.1 20101` and `ps` list all tasks. There
  is no password: any local user may cancel them. If the port is taken, as by another
  worker, nothing says so until the process stops.

Try it:

    POST /login
    GET /loop

Keywords: event loop blocked, event loop lag, everything is slow, watchdog, aiomonitor,
  blockbuster, slow_callback_duration, Executing took seconds, asyncio debug
Related: routes/def_or_async, routes/cpu_bound, routes/blocking_library
"""

import asyncio
import hashlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from fastapi import FastAPI, Request

THRESHOLD = 0.1  # seconds that the loop may take to answer
INTERVAL = 0.05  # seconds between two questions: 20 a second cost next to nothing
LOG_INTERVAL = 1.0  # seconds between two stacks in the log
logger = logging.getLogger(__name__)


class Watchdog(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.stalls, self.lag, self.longest = 0, 0.0, 0.0
        self.stop = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._may_log_at = 0.0

    def run(self) -> None:
        due = time.monotonic() + INTERVAL
        while not self.stop.wait(INTERVAL):
            answered = threading.Event()
            self._loop.call_soon_threadsafe(answered.set)
            if not answered.wait(THRESHOLD):
                self._log_stack()
                answered.wait()  # a long stall is reported once
            self.lag = time.monotonic() - due
            self.longest = max(self.longest, self.lag)
            self.stalls += self.lag > THRESHOLD
            due = time.monotonic() + INTERVAL

    def _log_stack(self) -> None:
        if time.monotonic() >= self._may_log_at:
            self._may_log_at = time.monotonic() + LOG_INTERVAL
            frames = sys._current_frames()  # noqa: SLF001 - there is no other way
            stack = traceback.format_stack(frames[self._loop_thread])
            logger.warning("The event loop is blocked:\n%s", "".join(stack))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Watchdog]]:
    with ExitStack() as stack:
        if port := int(os.environ.get("AIOMONITOR_PORT", "0")):
            import aiomonitor  # type: ignore[import-untyped] # there are no types

            options = {"port": port, "webui_port": port + 1, "console_enabled": False}
            monitor = aiomonitor.start_monitor(asyncio.get_running_loop(), **options)
            stack.enter_context(monitor)  # listens on 127.0.0.1 only
        watchdog = Watchdog()
        watchdog.start()
        try:
            yield {"watchdog": watchdog}
        finally:
            watchdog.stop.set()
            await asyncio.to_thread(watchdog.join)  # it may wait for the loop


app = FastAPI(lifespan=lifespan)


@app.get("/loop")
async def loop(request: Request) -> dict[str, int | float]:
    """For your metrics: a count, and seconds."""
    dog: Watchdog = request.state.watchdog
    return {"stalls": dog.stalls, "lag": dog.lag, "longest": dog.longest}


@app.post("/login")
async def login() -> None:  # demo: it should be `def`
    hash_password("secret")


def hash_password(password: str) -> None:  # demo: computes for three thresholds
    until = time.monotonic() + 3 * THRESHOLD
    while time.monotonic() < until:
        hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 10_000)


# --- evidence ---
def main() -> None:
    import re
    from io import StringIO

    from fastapi.testclient import TestClient

    logger.addHandler(handler := logging.StreamHandler(log := StringIO()))
    with TestClient(app) as client:
        while "in login" not in log.getvalue():  # once is enough on an idle machine
            client.post("/login")
    names = re.findall(" in (login|hash_password)", log.getvalue())
    print("blocked in", " > ".join(names[:2]))
    # > blocked in login > hash_password
    logger.removeHandler(handler)


if __name__ == "__main__":
    main()
