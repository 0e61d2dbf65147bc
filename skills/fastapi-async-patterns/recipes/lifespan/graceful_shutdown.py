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

- A client that does not read, or a call that hangs, keeps uvicorn at "Waiting for
  connections to close." forever without `--timeout-graceful-shutdown`; the lifespan
  sets it where the command line does not. What is cancelled then gets no time to
  clean up. Drain, limit and cleanup must fit in before SIGKILL: 10 s in Docker, 30 s
  in Kubernetes.
- Without a load balancer that asks, leave out `/ready`, `probed` and `draining`.
- A stream must wait for `stopping` and for its next event at the same time.
- uvicorn closes WebSockets with code 1012. An endpoint that only waits for something
  else holds up the stop: "Waiting for background tasks to complete."
- A second SIGTERM ends the drain. Ctrl-C skips it, and a second Ctrl-C all the rest.
- `--workers` and `--reload` pass SIGTERM on: a reload drains, too, once `/ready` was
  asked. `--limit-max-requests` sends no signal, so streams are not told.
- Not covered: servers other than uvicorn. There, the signal keeps its handler.

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
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

DRAIN_SECONDS = 4.0  # probe period x failures, until the load balancer acts
STOP_SECONDS = 5  # then uvicorn cancels what is still open


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, asyncio.Event]]:
    probed = asyncio.Event()  # if nobody asks /ready, there is nobody to wait for
    draining = asyncio.Event()  # /ready fails, the rest is served
    stopping = asyncio.Event()  # streams end, uvicorn stops
    loop = asyncio.get_running_loop()
    handler = signal.getsignal(signal.SIGTERM)
    server = getattr(handler, "__self__", None)
    if isinstance(server, uvicorn.Server):  # not in a TestClient

        def on_signal(number: int) -> None:
            if number == signal.SIGTERM and probed.is_set() and not draining.is_set():
                draining.set()
                loop.call_later(DRAIN_SECONDS, on_signal, number)
            else:
                stopping.set()
                server.handle_exit(number, None)

        config = server.config
        config.timeout_graceful_shutdown = (
            config.timeout_graceful_shutdown or STOP_SECONDS
        )
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn puts back its caller's
            signal.signal(number, lambda n, _: loop.call_soon_threadsafe(on_signal, n))
    yield {"probed": probed, "draining": draining, "stopping": stopping}


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
    import threading

    import httpx2

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
