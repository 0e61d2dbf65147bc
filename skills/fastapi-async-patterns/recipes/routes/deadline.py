# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Give a whole request one time budget.

`DeadlineRoute` puts one `asyncio.timeout` around a route: reading the body, the
dependencies and the endpoint share its seconds. When they are used up, the endpoint is
cancelled, cleanup runs, and the client gets 504. A caller may send a smaller budget in
a header; `remaining` is what is left for the next service or for a thread.

**Use when** a request waits for several things, each with a timeout of its own, and
nobody waits for the sum. **Not when** the response is a stream: the budget ends before
the first byte is sent. Put streams on a router without it.

Gotchas:

- A middleware with `wait_for(call_next(request), 2)` answers 504 and lets the endpoint
  run on. It also takes any `TimeoutError` from inside for its own; `expired()` tells.
- The endpoint is cancelled once, so `finally: await rollback()` works. Under
  `anyio.move_on_after` that `await` is cancelled too, unless it is shielded.
- Code that catches `CancelledError` (a bare `except:`) runs on without a limit; only
  then comes the 504. Cleanup has no limit either: give it a timeout of its own.
- A thread is not stopped: a `def` route goes on after its 504 and no longer counts as
  one of the 40, so threads pile up. Give the blocking call `remaining(request)` as its
  timeout.
- Not limited: sending the response, background tasks, and what a dependency does after
  its `yield`, such as a commit.

Try it:

    GET /orders?ms=100
    GET /orders?ms=1500  # 504: two waits of 1.5 s, a budget of 2 s

Keywords: request timeout, 504 Gateway Timeout, time budget, asyncio.timeout, wait_for,
  deadline propagation, cancel a slow request
Related: routes/client_disconnect, lifespan/http_client, routes/def_or_async
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.routing import APIRoute

SECONDS = 2.0
HEADER = "X-Timeout-Ms"  # what a caller still has; there is no standard name

logger = logging.getLogger(__name__)


def budget(request: Request) -> float:
    """Ours, or the caller's if that is smaller."""
    text = request.headers.get(HEADER, "")
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return min(SECONDS, int(text) / 1000)
    return SECONDS


def remaining(request: Request) -> float:
    deadline: float = request.state.deadline
    return max(0.0, deadline - time.monotonic())


class DeadlineRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def limited(request: Request) -> Response:
            seconds = budget(request)
            request.state.deadline = time.monotonic() + seconds
            why: object = "its cancellation was ignored"
            try:
                async with asyncio.timeout(seconds) as timeout:
                    response = await handle(request)
            except Exception as error:
                if not timeout.expired():
                    raise  # not ours, even if it is a TimeoutError
                why = error
            if timeout.expired():
                logger.warning("%s is out of time: %r", self.path, why)
                raise HTTPException(504, "No answer in time")
            return response

        return limited


router = APIRouter(route_class=DeadlineRoute)
Ms = Annotated[int, Query(ge=0, le=10_000)]


async def transaction(ms: Ms = 10) -> AsyncIterator[None]:  # demo: your database
    await asyncio.sleep(ms / 1000)
    try:
        yield
    except BaseException:
        await asyncio.sleep(0)
        events[:] = ["rolled back"]  # demo
        raise


async def fetch_orders(ms: int, headers: dict[str, str]) -> str:  # demo: your service
    await asyncio.sleep(ms / 1000)
    return f"done with {headers[HEADER]} ms left"


@router.get("/orders", dependencies=[Depends(transaction)])
async def orders(request: Request, ms: Ms = 10) -> str:
    left = int(remaining(request) * 1000)
    return await fetch_orders(ms, headers={HEADER: str(left)})


app = FastAPI()
app.include_router(router)


# --- evidence ---
events: list[str] = []


def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        print(client.get("/orders?ms=10").status_code, events)
        # > 200 []
        response = client.get("/orders?ms=40", headers={HEADER: "60"})
        print(response.status_code, events)
        # > 504 ['rolled back']


if __name__ == "__main__":
    main()
