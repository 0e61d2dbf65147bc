"""routes/cpu_bound with few workers, one place to wait, and jobs that misbehave."""

import asyncio
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from fastapi import Request

from recipes.routes import cpu_bound
from recipes.routes.cpu_bound import Workers, app

WAITING = 1
USUAL_SECONDS = 20
cpu_bound.WORKERS = int(os.environ.get("WORKERS", "1"))
cpu_bound.WAITING = WAITING
cpu_bound.JOB_SECONDS = USUAL_SECONDS


def hold(folder: str) -> int:
    """Run until there is a file "go"."""
    pid = os.getpid()
    Path(folder, str(pid)).touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return pid


def spin() -> None:
    while True:
        pass


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is out


def fail() -> None:
    print("printed in the worker", flush=True)  # noqa: T201 - where does it go?
    raise ValueError("raised in the worker")


def leave() -> None:
    sys.exit("no such option")  # as argparse does


JOBS = {job.__name__: job for job in (die, fail, leave, os.getpid)}


@app.get("/hold")
async def hold_route(request: Request, folder: str) -> int:
    workers: Workers = request.state.workers
    return await workers.run(partial(hold, folder))


@app.get("/spin")
async def spin_route(request: Request) -> None:
    """Have a limit that is over soon, while other jobs have the usual one."""
    workers: Workers = request.state.workers
    cpu_bound.JOB_SECONDS = 0.5  # type: ignore[assignment]
    job = asyncio.create_task(workers.run(spin))
    await asyncio.sleep(0)
    cpu_bound.JOB_SECONDS = USUAL_SECONDS
    await job


@app.get("/jobs/{name}")
async def job(request: Request, name: str) -> int | None:
    workers: Workers = request.state.workers
    return await workers.run(JOBS[name])
