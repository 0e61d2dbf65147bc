# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Keep a slow blocking library from starving other routes.

All `def` routes share 40 threads. When a library hangs, its calls take all of them, and
routes that never use it wait as well. So give it threads of its own, and limit how many
calls may wait for one: one call more gets 503. This is called a bulkhead.

**Use when** a library blocks (boto3, requests, a vendor's SDK) and its service may be
slow. **Not when** its calls are always fast: use `def`. Better: an async client.

Gotchas:

- Nothing stops a thread. Set the timeout and the retries of the library itself; they
  decide how long a bad day lasts. Many have no timeout by default, such as `requests`.
- `anyio.CapacityLimiter` does not limit threads when a call is cancelled natively, by
  `asyncio.timeout` or a stop: its token is free while the thread runs on. Here `shield`
  keeps the place until then. A call that is cancelled while it waits is never made.
- What the call changes in a context variable does not come back.
- A client that threads share must be thread-safe: `requests.Session` does not promise
  it. If in doubt, keep one per thread in a `threading.local`.
- SIGTERM does not wait for threads, so a call may be cut off. Ctrl-C waits for them.
- Limits are per worker process. A client that disconnects keeps its place.

Try it:

    GET /companies/7
    GET /ping

Keywords: bulkhead, thread pool exhausted, starvation, blocking SDK, boto3, requests,
  CapacityLimiter, ThreadPoolExecutor, run_in_executor
Related: routes/def_or_async, routes/cpu_bound, routes/deadline
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Path, Request

THREADS = 8  # not more than the service's connections
WAITING = 16  # calls that may wait for a thread
CALL_SECONDS = 5  # the wait for a thread is at most twice that

Result = TypeVar("Result")


class Bulkhead:
    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._free = asyncio.Semaphore(THREADS)
        self._waiting = 0

    async def run(self, call: Callable[[], Result]) -> Result:
        if self._waiting == WAITING:
            raise HTTPException(503, "The register is slow.", {"Retry-After": "5"})
        self._waiting += 1
        try:
            await self._free.acquire()  # the executor would keep cancelled calls
        finally:
            self._waiting -= 1
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, copy_context().run, call)
        work.add_done_callback(lambda _: self._free.release())
        return await asyncio.shield(work)  # not done before the thread is


class Register:  # demo: your library
    def __init__(self) -> None:
        self.up = threading.Event()
        self.up.set()

    def look_up(self, number: int, timeout: float) -> str:
        if not self.up.wait(timeout):
            raise TimeoutError
        return f"Company {number}"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    threads = ThreadPoolExecutor(THREADS, "register")
    try:
        yield {"bulkhead": Bulkhead(threads), "register": Register()}
    finally:
        threads.shutdown(wait=False)  # waiting would block the event loop


app = FastAPI(lifespan=lifespan)


@app.get("/companies/{number}")
async def company(
    request: Request, number: Annotated[int, Path(ge=0, lt=10**9)]
) -> str:
    bulkhead: Bulkhead = request.state.bulkhead
    register: Register = request.state.register
    try:
        return await bulkhead.run(
            partial(register.look_up, number, timeout=CALL_SECONDS)
        )
    except TimeoutError:  # your library's
        raise HTTPException(504, "The register does not answer.") from None


@app.get("/ping")
def ping() -> str:  # `def`: from the 40 threads
    return "pong"


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    load = THREADS + WAITING + 40
    with TestClient(app) as client, ThreadPoolExecutor(load) as users:
        register = client.app_state["register"]
        register.up.clear()
        calls = [users.submit(client.get, f"/companies/{n}") for n in range(load)]
        while sum(call.done() for call in calls) < 40:
            pass
        print(client.get("/ping").json())
        # > pong
        register.up.set()
        statuses = [call.result().status_code for call in calls]
        print(f"{statuses.count(200)} answered, {statuses.count(503)} refused")
        # > 24 answered, 40 refused


if __name__ == "__main__":
    main()
