# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Choose between def and async def.

`async def` runs in the event loop: when it blocks, every request waits. `def` runs
in one of 40 threads, so it may block; the 41st call waits. So: blocking code in `def`,
awaiting code in `async def`, `run_in_threadpool` for one blocking call among awaits,
and a 503 when too many calls wait for a thread.

**Use when** you write any route or dependency. **Not when** the work is CPU-bound
Python: threads run it one at a time. Use processes.

Gotchas:

- These share the 40: `def` routes and dependencies, `FileResponse`, `UploadFile` over
  1 MiB. An `async def` route with a `def` dependency also waits for a thread.
- A `def` route with a return type queues for a thread twice: to run, then to validate
  what it returned. With `run_in_threadpool` it is once.
- Nothing stops a thread, neither a client that disconnects nor `asyncio.timeout`, which
  frees its slot while it still runs. Blocking calls need their own timeout.
- `THREADS` changes the 40. More threads than database connections only move the queue.
- A context variable set in a `def` dependency is not set in the route.
- `def` routes run in parallel: lock what they share. To touch what belongs to the loop,
  such as an `asyncio.Event`, use `anyio.from_thread.run_sync`.

Try it:

    GET /ping
    GET /threads
    POST /cards/7  # 204
    GET /card

Keywords: sync or async, blocking call, event loop blocked, thread pool, 40 threads,
  run_in_threadpool, to_thread, starvation
Related: streaming/upload, concurrency/fan_out, databases/sqlalchemy_session
"""

import os
import queue
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

READ_SECONDS = 20  # nothing else ends a blocking call
MAX_WAITING = 40  # calls that wait for a thread; refuse the next with 503
Cards = queue.Queue[int]


def read_card(cards: Cards) -> int:
    """Demo: in place of any call that blocks (requests, boto3, psycopg2)."""
    try:
        return cards.get(timeout=READ_SECONDS)
    except queue.Empty:
        raise HTTPException(504, "Nobody presented a card.") from None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Cards]]:
    limiter = current_default_thread_limiter()  # of this event loop
    limiter.total_tokens = int(os.environ.get("THREADS") or 40)
    yield {"cards": Cards(maxsize=100)}


async def get_cards(request: Request) -> Cards:  # as `def` it would take a thread
    cards: Cards = request.state.cards
    return cards


async def admit() -> None:
    if current_default_thread_limiter().statistics().tasks_waiting >= MAX_WAITING:
        raise HTTPException(503, "All threads are busy.", {"Retry-After": "5"})


CardsDep = Annotated[Cards, Depends(get_cards)]
app = FastAPI(lifespan=lifespan)


@app.get("/card", dependencies=[Depends(admit)])
def card(cards: CardsDep) -> int:  # it blocks: `def`
    return read_card(cards)


@app.get("/greeting", dependencies=[Depends(admit)])
async def greeting(cards: CardsDep) -> str:  # one blocking call in code that awaits
    card = await run_in_threadpool(read_card, cards)
    return f"Hello, {card}"


@app.post("/cards/{card}", status_code=204)
async def present(cards: CardsDep, card: int) -> None:  # it never blocks: `async def`
    try:
        cards.put_nowait(card)
    except queue.Full:
        raise HTTPException(503, "Nobody reads the cards.") from None


@app.get("/ping")
async def ping() -> str:
    return "pong"


@app.get("/threads")
async def threads() -> dict[str, int]:  # put `waiting` on a graph: it should stay 0
    found = current_default_thread_limiter().statistics()
    return {"busy": found.borrowed_tokens, "waiting": found.tasks_waiting}


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
