"""routes/cpu_bound with two workers, one place to wait, and jobs that misbehave."""

import os
import signal
import time
from functools import partial
from pathlib import Path

from fastapi import Request

from recipes.routes import cpu_bound
from recipes.routes.cpu_bound import Workers, app

WORKERS = cpu_bound.WORKERS = 2
WAITING = cpu_bound.WAITING = 1
cpu_bound.JOB_SECONDS = float(os.environ.get("JOB_SECONDS", "20"))  # type: ignore[assignment]


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


JOBS = {job.__name__: job for job in (spin, die, fail, os.getpid)}


@app.get("/hold")
async def hold_route(request: Request, folder: str) -> int:
    workers: Workers = request.state.workers
    return await workers.run(partial(hold, folder))


@app.get("/jobs/{name}")
async def job(request: Request, name: str) -> int | None:
    workers: Workers = request.state.workers
    return await workers.run(JOBS[name])
