# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Finish requests and end streams before a deploy stops the process.

uvicorn waits for open streams, and runs what follows `yield` in the lifespan only
after them. So the lifespan handles the signal before uvicorn does: `/ready` fails until
the load balancer sends no more requests, streams end, then uvicorn finishes the rest.

**Use when** a deploy must not lose a request, or an open stream keeps a stopped process
alive. **Not when** work must survive a crash too: use a durable queue.

Gotchas:

- Start uvicorn with `--timeout-graceful-shutdown 5`: a client that does not read, or a
  call that hangs, keeps it at "Waiting for connections to close." forever. What is
  cancelled after these 5 s gets no time to clean up. Drain, 5 s and the lifespan's own
  cleanup must fit in before SIGKILL: 10 s in Docker, 30 s in Kubernetes.
- A stream must wait for `stopping` and for its next event at the same time.
- uvicorn closes WebSockets with code 1012. An endpoint that only waits for something
  else holds up the stop: "Waiting for background tasks to complete."
- A second SIGTERM ends the drain. Ctrl-C skips it, and a second Ctrl-C all the rest.
- `--workers` and `--reload` pass SIGTERM on: a reload drains, too, once `/ready` was
  asked. `--limit-max-requests` sends no signal, so streams are not told.

Try it:

    GET /ready
    GET /live
    POST /payments  # 201
    SSE /ticks

Keywords: SIGTERM, Waiting for connections to close, rolling deploy, graceful shutdown,
  drain, readiness probe, liveness, hangs on Ctrl-C
Related: lifespan/resources, sse/feed, background/after_response
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import FrameType

from fastapi import FastAPI, HTTPException, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

DRAIN_SECONDS = 4.0  # probe period x failures, until the load balancer acts


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, asyncio.Event]]:
    probed = asyncio.Event()  # if nobody asks /ready, there is nobody to wait for
    draining = asyncio.Event()  # /ready fails, the rest is served
    stopping = asyncio.Event()  # streams end, uvicorn stops
    call_soon = asyncio.get_running_loop().call_soon_threadsafe

    def on_signal(number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM and probed.is_set() and not draining.is_set():
            call_soon(draining.set)
        else:
            call_soon(stopping.set)
            signal.signal(number, previous[number])
            signal.raise_signal(number)  # now uvicorn handles it

    async def drain() -> None:
        await draining.wait()
        await asyncio.sleep(DRAIN_SECONDS)
        signal.raise_signal(signal.SIGTERM)

    # Python allows this in the main thread only; TestClient starts us in another one.
    is_main = threading.current_thread() is threading.main_thread()
    numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    previous = {number: signal.signal(number, on_signal) for number in numbers}
    drainer = asyncio.create_task(drain())
    try:
        yield {"probed": probed, "draining": draining, "stopping": stopping}
    finally:
        drainer.cancel()
        for number, handler in previous.items():
            signal.signal(number, handler)


app = FastAPI(lifespan=lifespan)


@app.get("/live")
async def live() -> None:
    """Fails if the process must be restarted; a stop is no reason."""


@app.get("/ready")
async def ready(request: Request) -> None:
    """Fails if new requests must go elsewhere."""
    request.state.probed.set()
    if request.state.draining.is_set() or request.state.stopping.is_set():
        raise HTTPException(503, "stopping")


@app.get("/ticks", response_class=EventSourceResponse)
async def ticks(request: Request) -> AsyncIterable[ServerSentEvent]:
    stopping: asyncio.Event = request.state.stopping
    while not stopping.is_set():
        yield ServerSentEvent(event="tick", data={})  # demo: your event
        with suppress(TimeoutError):
            async with asyncio.timeout(1):  # demo: until the next one
                await stopping.wait()
    yield ServerSentEvent(event="bye", data={}, retry=2000)  # EventSource comes back


@app.post("/payments", status_code=201)
async def pay() -> None:
    await asyncio.sleep(1)  # demo: a request that a stop must not cut off


# --- evidence ---
def main() -> None:
    import os
    import socket

    import httpx2
    import uvicorn

    def deploy() -> None:
        with httpx2.Client(base_url=url) as http, http.stream("GET", "/ticks") as ticks:
            http.get("/ready").raise_for_status()
            os.kill(os.getpid(), signal.SIGTERM)
            while http.get("/ready").is_success:
                pass
            print("no longer ready, payment:", http.post("/payments").status_code)
            # > no longer ready, payment: 201
            os.kill(os.getpid(), signal.SIGINT)  # uvicorn would raise SIGTERM again
            print([line for line in ticks.iter_lines() if "event" in line][-1])
            # > event: bye

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = threading.Thread(target=deploy)
    client.start()
    with suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])
    client.join()


if __name__ == "__main__":
    main()
