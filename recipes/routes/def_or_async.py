# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Choose between def and async def.

`async def` runs in the event loop: when it blocks, every request waits. `def` runs
in a thread, so it may block; there are 40 threads, and the 41st call waits. Hence
blocking code in `def`, awaiting code in `async def`, and `run_in_threadpool` for
one blocking call among awaits.

**Use when** you write any route or dependency. **Not when** the work is computing
in Python: threads take turns at it. Take processes.

Gotchas:

- All share the 40: `def` routes and dependencies, `FileResponse`, `UploadFile` from
  1 MiB on. An `async def` route with a `def` dependency waits for a thread too.
- A `def` route with a return type takes a thread twice: its answer is validated in
  one, and waits for it behind all others. `run_in_threadpool` is one trip.
- Nothing stops a thread, no client that leaves and no `asyncio.timeout`: that gives
  the thread's place away while it runs on. Blocking calls need their own timeout.
- `THREADS` sets their number: with more than the database has connections, calls
  queue there.
- A context variable that a `def` dependency sets is not set in the route.
- `def` routes run at the same time: what they share needs a lock. What belongs to
  the loop, such as `asyncio.Event`, they reach with `anyio.from_thread.run_sync`.

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
MAX_WAITING = 40  # calls without a thread; with more, a refusal beats the queue
Cards = queue.Queue[int]


def read_card(cards: Cards) -> int:
    """Stands for any library that blocks: requests, boto3, psycopg2, a device."""
    try:
        return cards.get(timeout=READ_SECONDS)
    except queue.Empty:
        raise HTTPException(504, "Nobody presented a card.") from None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Cards]]:
    limiter = current_default_thread_limiter()  # of this event loop
    before = limiter.total_tokens
    limiter.total_tokens = int(os.environ.get("THREADS") or before)
    yield {"cards": Cards(maxsize=100)}
    limiter.total_tokens = before


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
async def threads() -> dict[str, int]:  # graph `waiting`: it should stay at 0
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
