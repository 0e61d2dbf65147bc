# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Choose between def and async def.

`async def` runs in the event loop: when it blocks, every request waits. `def` runs
in one of 40 threads, so it may block; the 41st call waits for a thread. So: blocking
code in `def`, awaiting code in `async def`, and `run_in_threadpool` for one blocking
call among awaits.

**Use when** you write any route or dependency. **Not when** the work is CPU-bound
Python: threads run it one at a time. Use processes.

Gotchas:

- These share the 40: `def` routes and dependencies, `FileResponse`, `UploadFile` over
  1 MiB. An `async def` route with a `def` dependency also waits for a thread.
  `asyncio.to_thread` has its own pool: CPUs + 4 threads, at most 32.
- A `def` route with a return type queues for a thread twice: to run, then to validate
  what it returned. With `run_in_threadpool` it is once.
- Nothing stops a thread, neither a client that disconnects nor `asyncio.timeout`, which
  frees its slot while it still runs. Blocking calls need their own timeout. SIGTERM
  waits for the queued calls too, 20 s for each 40, even if their clients have left:
  start uvicorn with `--timeout-graceful-shutdown 5`.
- Nothing in the app limits the queue for threads. `uvicorn --limit-concurrency 200`
  does: when 200 connections are open, idle ones too, it answers 503.
- `def` routes run in parallel: lock what they share. To touch what belongs to the loop,
  such as an `asyncio.Event`, use `anyio.from_thread.run_sync`.
- A context variable set in a `def` dependency is not set in the route.

Try it:

    GET /ping
    GET /threads
    POST /cards/7  # 204
    GET /card

Keywords: sync or async, blocking call, event loop blocked, thread pool, 40 threads,
  run_in_threadpool, to_thread, starvation
Related: streaming/upload, concurrency/fan_out, databases/sqlalchemy_session
"""

import queue
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

THREADS = 40  # the default; more than your database connections only move the queue
READ_SECONDS = 10  # nothing else ends a blocking call


class NoCardError(Exception): ...  # demo: the timeout error of your library


class CardReader:  # demo: your blocking library, such as requests, boto3, psycopg2
    def __init__(self) -> None:
        self.cards = queue.Queue[int](maxsize=100)

    def read(self, timeout: float) -> int:
        try:
            return self.cards.get(timeout=timeout)
        except queue.Empty:
            raise NoCardError from None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, CardReader]]:
    current_default_thread_limiter().total_tokens = THREADS  # of this event loop
    yield {"reader": CardReader()}


app = FastAPI(lifespan=lifespan)


@app.exception_handler(NoCardError)
async def no_card(*_: object) -> JSONResponse:
    return JSONResponse({"detail": "Nobody presented a card."}, status_code=504)


@app.get("/card")
def card(request: Request) -> int:  # it blocks: `def`
    reader: CardReader = request.state.reader
    return reader.read(timeout=READ_SECONDS)


@app.get("/greeting")
async def greeting(request: Request) -> str:  # one blocking call in code that awaits
    reader: CardReader = request.state.reader
    card = await run_in_threadpool(reader.read, timeout=READ_SECONDS)
    return f"Hello, {card}"


@app.get("/ping")
async def ping() -> str:  # it never blocks: `async def`
    return "pong"


@app.get("/threads")
async def threads() -> dict[str, int]:  # of this worker; alert when calls keep waiting
    found = current_default_thread_limiter().statistics()
    return {"busy": found.borrowed_tokens, "waiting": found.tasks_waiting}


@app.post("/cards/{card}", status_code=204)
async def present(request: Request, card: int) -> None:  # demo: lets a read return
    reader: CardReader = request.state.reader
    try:
        reader.cards.put_nowait(card)
    except queue.Full:
        raise HTTPException(503, "Nobody reads the cards.") from None


# --- evidence ---
def main() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from fastapi.testclient import TestClient

    with TestClient(app) as client, ThreadPoolExecutor(41) as users:
        calls = [users.submit(client.get, "/card") for _ in range(41)]
        while not (threads := client.get("/threads").json())["waiting"]:
            pass
        print(threads, client.get("/ping").json())
        # > {'busy': 40, 'waiting': 1} pong
        for number in range(41):
            client.post(f"/cards/{number}")
        print(len({call.result().json() for call in calls}), "cards")
        # > 41 cards


if __name__ == "__main__":
    main()
