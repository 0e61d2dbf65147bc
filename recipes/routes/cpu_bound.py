# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Run CPU-bound work on other cores.

AnyIO runs each job in a worker process, so the event loop stays free. The queue is
bounded: one job more gets 503 and `Retry-After`. A job that takes too long gets 504,
and its process is killed, because nothing else stops it.

**Use when** a request needs seconds of pure Python: parsing, images, scores.
**Not when** it needs milliseconds, or a library that releases the GIL: use `def`. If
the result may come later but must come, use a job queue.

Gotchas:

- A worker imports the module of the function, and all of the script that was started:
  without its `__main__` guard, "Error during worker process initialization".
- Arguments and results are pickled in the event loop: pass a path or an id, not
  gigabytes. What a job prints or logs is lost, and the traceback of what it raises.
- `SystemExit` from a job ends the server, because AnyIO raises it there again. Here it
  becomes a `RuntimeError`.
- A worker that dies (out of memory) is a 500 for its job alone, `BrokenWorkerProcess`;
  one that dies idle may be one for a later job, `ProcessLookupError` in AnyIO 4.16.
  A `ProcessPoolExecutor` fails all jobs, also later ones: `BrokenProcessPool`.
- A job goes on when its client disconnects. It even goes on after SIGKILL of the
  server, and then nothing limits it.
- `os.cpu_count()` is the host's: in a container, set `WORKERS` to its CPUs. Each
  `uvicorn --workers` starts as many, and each holds your app in memory. One that is
  idle for 5 minutes may end, and the next job waits for a start. Not covered: who may
  start jobs.

Try it:

    GET /primes?below=100000
    GET /primes?below=-1  # 422
    GET /health

Keywords: CPU-bound, GIL, ProcessPoolExecutor, multiprocessing, worker processes,
  BrokenProcessPool, 503, Retry-After, slow health check
Related: routes/def_or_async, routes/blocking_library, routes/deadline
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from math import isqrt
from typing import Annotated, TypeVar

import anyio
from anyio import CapacityLimiter, to_process
from fastapi import FastAPI, HTTPException, Query, Request

WORKERS = min(os.cpu_count() or 1, 8)  # processes
WAITING = 2 * WORKERS  # jobs that may wait for a worker
JOB_SECONDS = 10  # in a worker; the wait for one is at most two times that

Result = TypeVar("Result")


def in_worker(job: Callable[[], Result]) -> Result:
    # Ctrl-C and systemd signal all processes; workers end with the server anyway.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        return job()
    except SystemExit as error:
        raise RuntimeError(f"The job called sys.exit({error}).") from None


async def call(job: Callable[[], Result]) -> Result:
    one = CapacityLimiter(1)  # `Workers` sets the limit, not AnyIO's default
    return await to_process.run_sync(in_worker, job, limiter=one, cancellable=True)


class Workers:
    def __init__(self) -> None:
        self._admitted = asyncio.Semaphore(WORKERS + WAITING)
        self._free = asyncio.Semaphore(WORKERS)

    async def start(self) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(WORKERS):  # all at once, so that each starts a process
                group.start_soon(call, os.getpid)

    async def run(self, job: Callable[[], Result]) -> Result:
        if self._admitted.locked():  # no await between this and `async with`
            raise HTTPException(503, "All workers are busy.", {"Retry-After": "10"})
        async with self._admitted, self._free:
            with anyio.move_on_after(JOB_SECONDS):  # kills the process
                return await call(job)
        raise HTTPException(504, f"The job took longer than {JOB_SECONDS} s.")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Workers]]:
    workers = Workers()
    await workers.start()  # before the first request
    yield {"workers": workers}


app = FastAPI(lifespan=lifespan)


def count_primes(below: int) -> dict[str, int]:  # demo: your function
    primes = sum(all(n % d for d in range(2, isqrt(n) + 1)) for n in range(2, below))
    return {"primes": primes, "pid": os.getpid()}


@app.get("/primes")
async def primes(
    request: Request, below: Annotated[int, Query(ge=0, le=200_000)]
) -> dict[str, int]:
    workers: Workers = request.state.workers
    return await workers.run(partial(count_primes, below))


@app.get("/health")
async def health() -> str:
    return "ok"


# --- evidence ---
def main() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from fastapi.testclient import TestClient

    load = WORKERS + WAITING + 1
    with TestClient(app) as client, ThreadPoolExecutor(load) as users:
        jobs = [users.submit(client.get, "/primes?below=149999") for _ in range(load)]
        healthy = 0
        while not all(job.done() for job in jobs):
            healthy += client.get("/health").is_success
        answers = [job.result() for job in jobs]
    pids = {answer.json()["pid"] for answer in answers if answer.is_success}
    print(len(pids) == WORKERS, os.getpid() in pids, healthy > load)
    # > True False True
    print(sorted(answer.status_code for answer in answers)[-2:])
    # > [200, 503]


if __name__ == "__main__":
    main()
