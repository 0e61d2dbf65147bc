"""lifespan/resources: opened in order, closed in reverse, whatever fails or hangs."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, Self

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import FastAPIError
from fastapi.testclient import TestClient

from recipes._cookbook.catalogue import ROOT
from recipes.lifespan import resources
from tests.behavior.lifespan import naive_resources
from tests.conftest import Serve
from tests.harness.server import Server

RECIPE = "recipes.lifespan.resources"
NAIVE = "tests.behavior.lifespan.naive_resources"
EVENTS = "tests.behavior.lifespan.naive_resources_events"
FAULTY = "tests.behavior.lifespan.faulty_resources"
OPENED = ["connect", "CREATE", "INSERT"]


class Run(Protocol):
    def __call__(self, target: str, faults: str = "", **env: str) -> Server:
        """Start `target` in which `faults` happen; it may never be ready."""


@pytest.fixture
def run(serve: Serve) -> Run:
    def start(target: str, faults: str = "", **env: str) -> Server:
        env = {"TARGET": target, "FAULTS": faults, **env}
        return serve(FAULTY, env=env, strict=False, must_start=False)

    return start


def steps(server: Server) -> list[str]:
    """What was asked of the database, in order."""
    lines = server.log.splitlines()
    return [line[6:] for line in lines if line.startswith("step: ")]


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [worker for (worker,) in db.execute("SELECT worker FROM lease")]


def lives(process: Server) -> Server:
    """Start, then SIGTERM."""
    process.wait_for_log("Application startup complete")
    process.signal(signal.SIGTERM)
    return process


@pytest.mark.defect("D82", "D92")
def test_what_was_opened_is_closed_when_the_second_fails(run: Run) -> None:
    recipe, *naives = (run(t, "INSERT:raise") for t in (RECIPE, NAIVE, EVENTS))
    for process in recipe, *naives:
        assert process.wait() == 3
        assert process.log.count("INSERT does not work") == 1  # one cause, told once
    assert steps(recipe) == [*OPENED, "DELETE", "close"]
    assert recipe.log.count("Traceback") == 1
    assert "while opening lease\n" in recipe.log
    for process in naives:
        assert steps(process) == OPENED


@pytest.mark.parametrize("step", ["connect", "CREATE"])
def test_the_first_that_fails_is_named(run: Run, step: str) -> None:
    recipe = run(RECIPE, f"{step}:raise")
    assert recipe.wait() == 3
    assert f"OperationalError: {step} does not work\nwhile opening database" in (
        recipe.log
    )
    assert steps(recipe) == (
        ["connect"] if step == "connect" else [*OPENED[:2], "close"]
    )


def test_the_cause_is_not_hidden_by_a_close_that_fails_too(run: Run) -> None:
    recipe = run(RECIPE, "INSERT:raise,DELETE:raise,close:raise")
    assert recipe.wait() == 3
    assert steps(recipe) == [*OPENED, "DELETE", "close"]
    assert "could not close database" in recipe.log


@pytest.mark.defect("D83")
def test_a_close_that_raises_does_not_keep_the_others_open(run: Run) -> None:
    faults = "close:raise,DELETE:raise"
    recipe, naive = (lives(run(target, faults)) for target in (RECIPE, NAIVE))
    assert recipe.wait() == naive.wait() == -signal.SIGTERM
    assert steps(recipe) == [*OPENED, "DELETE", "close"]
    assert steps(naive) == [*OPENED, "close"]
    assert "could not close lease" in recipe.log
    assert "could not close database" in recipe.log


def test_a_close_that_hangs_is_given_up(run: Run) -> None:
    recipe, naive = (run(target, "DELETE:hang") for target in (RECIPE, NAIVE))
    lives(naive)
    naive.wait_for_log("step: DELETE")
    assert lives(recipe).wait() == -signal.SIGTERM
    assert steps(recipe) == [*OPENED, "DELETE", "close"]
    assert "could not close lease" in recipe.log
    assert naive.is_running


def test_an_open_that_hangs_is_given_up_and_nothing_else_could_stop_it(
    run: Run,
) -> None:
    naive = run(NAIVE, "INSERT:hang")
    naive.wait_for_log("step: INSERT")
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGINT:
        naive.signal(number)
    recipe = run(RECIPE, "INSERT:hang")
    assert recipe.wait() == 3
    assert "TimeoutError\nwhile opening lease\n" in recipe.log
    assert steps(recipe) == [*OPENED, "DELETE", "close"]
    assert naive.is_running


def test_no_limit_stops_a_thread_and_the_process_waits_for_it(
    run: Run, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    recipe = run(RECIPE, "INSERT:block", GATE=str(gate))
    recipe.wait_for_log("Application startup failed")
    assert steps(recipe) == [*OPENED, "DELETE", "close"]
    assert "the thread has ended" not in recipe.log
    gate.touch()
    assert recipe.wait() == 3
    assert "the thread has ended" in recipe.log


def test_closed_in_reverse_because_the_second_needs_the_first(
    run: Run, tmp_path: Path
) -> None:
    files = {target: tmp_path / f"{target}.db" for target in (RECIPE, NAIVE)}
    recipe, naive = (
        lives(run(target, LEASES_FILE=str(path))) for target, path in files.items()
    )
    assert recipe.wait() == naive.wait() == -signal.SIGTERM
    assert steps(recipe) == [*OPENED, "DELETE", "close"]
    assert rows(files[RECIPE]) == []
    assert len(rows(files[NAIVE])) == 1
    assert "Cannot operate on a closed database" in naive.log


@pytest.mark.parametrize("path", ["missing/leases", "."])
def test_a_file_that_cannot_be_opened_stops_the_start(
    run: Run, tmp_path: Path, path: str
) -> None:
    recipe = run(RECIPE, LEASES_FILE=str(tmp_path / path))
    assert recipe.wait() == 3
    cause = "OperationalError: unable to open database file\nwhile opening database"
    assert cause in recipe.log


def test_a_database_locked_by_another_process_stops_the_start(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "leases"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE lease (worker)")
        other.execute("BEGIN EXCLUSIVE")
        recipe = run(RECIPE, LEASES_FILE=str(path))
        assert recipe.wait() == 3
    assert "while opening " in recipe.log
    assert steps(recipe)[-1] == "close"


def test_each_worker_has_a_lifespan_of_its_own(tmp_path: Path) -> None:
    path, options = tmp_path / "leases", ["--port", "0", "--workers", "2"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", f"{RECIPE}:app", *options],
        cwd=ROOT,
        env=os.environ | {"LEASES_FILE": str(path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stderr is not None
        for _ in range(2):
            assert any("startup complete" in line for line in parent.stderr)
        assert len(set(rows(path))) == 2
        parent.terminate()
        assert "ERROR" not in parent.stderr.read()
    assert rows(path) == []


def test_a_crash_gives_no_lease_back(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "leases"
    recipe = run(RECIPE, LEASES_FILE=str(path))
    recipe.wait_for_log("Application startup complete")
    recipe.kill()
    assert len(rows(path)) == 1


class Together:
    """A connection that tells whether a second thread uses it at the same time."""

    def __init__(self) -> None:
        self._both = threading.Barrier(2)
        self.is_shared = False

    def execute(self, _: str) -> Self:
        with suppress(threading.BrokenBarrierError):
            self._both.wait(0.3)  # a slow machine can only miss the second thread
            self.is_shared = True
        return self

    def fetchall(self) -> list[tuple[str]]:
        return [("w",)]


def used_at_once(module: Any) -> bool:
    db = Together()
    state = SimpleNamespace(db=db, worker="w", lease="w", lock=threading.Lock())
    request = SimpleNamespace(state=state, app=SimpleNamespace(state=state))
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(module.leases, [request, request]))
    assert answers == [{"mine": ["w"], "all": ["w"]}] * 2
    return db.is_shared


def test_one_thread_at_a_time_uses_the_connection() -> None:
    """Python 3.13.0 gives two threads each other's rows, halves of them, or none."""
    assert not used_at_once(resources)
    assert used_at_once(naive_resources)


async def test_many_at_once(recipe: Server) -> None:
    limits = httpx2.Limits(max_connections=50)
    async with recipe.client(limits=limits) as client:
        answers = await asyncio.gather(*(client.get("/leases") for _ in range(100)))
    for answer in answers:
        assert answer.json()["mine"] == answer.json()["all"]


def test_a_second_life_in_the_same_process_starts_clean() -> None:
    found = []
    for _ in range(2):
        with TestClient(resources.app) as client:
            found.append(client.get("/leases").json()["all"])
    assert [len(workers) for workers in found] == [1, 1]
    assert found[0] != found[1]


class Client:
    """Closes as redis-py's client does."""

    def __init__(self) -> None:
        self.closed_by: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self.closed_by = "aclose"

    async def close(self) -> None:
        message = "Call to deprecated close. (Use aclose() instead)"
        raise DeprecationWarning(message)


@pytest.mark.defect("D84")
async def test_a_client_is_closed_the_way_it_wants() -> None:
    async with resources.TimeLimited("client", Client()) as client:
        assert client.closed_by is None
    assert client.closed_by == "aclose"
    with pytest.raises(DeprecationWarning, match="Use aclose"):
        await client.close()


async def test_an_error_of_the_app_passes_through_and_all_is_closed() -> None:
    client = Client()
    with pytest.raises(RuntimeError, match="the app"):
        async with resources.TimeLimited("client", client):
            raise RuntimeError("the app")
    assert client.closed_by == "aclose"


async def test_a_resource_is_told_of_the_error_for_which_it_closes() -> None:
    ends: list[str] = []

    @asynccontextmanager
    async def begin() -> AsyncIterator[None]:
        try:
            yield
        except OSError:
            ends.append("rolled back")
            raise
        ends.append("committed")

    @asynccontextmanager
    async def cannot_open() -> AsyncIterator[None]:
        raise OSError("no second")
        yield

    first = resources.TimeLimited("first", begin())
    with pytest.raises(OSError, match="no second"):
        async with first, resources.TimeLimited("second", cannot_open()):
            pytest.fail("the second is open")
    async with resources.TimeLimited("first", begin()):
        pass
    assert ends == ["rolled back", "committed"]


def test_fastapi_does_not_take_a_request_with_a_state_type() -> None:
    async def endpoint(request: Request[dict[str, object]]) -> None:
        """As Starlette's documentation writes it."""

    with pytest.raises(FastAPIError, match="Invalid args for response field"):
        FastAPI().get("/")(endpoint)


@pytest.mark.defect("D90", "D91")
def test_on_event_is_deprecated_and_ignored_beside_a_lifespan() -> None:
    ran = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        ran.append("lifespan")
        yield

    for app in FastAPI(), FastAPI(lifespan=lifespan):
        with pytest.warns(DeprecationWarning, match="on_event is deprecated"):
            app.on_event("startup")(lambda: ran.append("on_event"))
        with TestClient(app):
            pass
    assert ran == ["on_event", "lifespan"]


def test_a_routers_lifespan_runs_and_a_mounted_apps_does_not() -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"cache": "warm"}

    app = FastAPI(lifespan=resources.lifespan)
    router = APIRouter(lifespan=lifespan)
    mounted = FastAPI(lifespan=lifespan)

    @router.get("/both")
    @mounted.get("/both")
    async def both(request: Request) -> list[bool]:
        return [hasattr(request.state, name) for name in ("lease", "cache")]

    app.include_router(router, prefix="/router")
    with TestClient(app) as client:
        assert client.get("/router/both").json() == [True, True]
    app = FastAPI(lifespan=resources.lifespan)
    app.mount("/mounted", mounted)
    with TestClient(app) as client:
        assert client.get("/mounted/both").json() == [True, False]


def test_without_with_the_test_client_runs_no_lifespan() -> None:
    with pytest.raises(AttributeError, match="'State' object has no attribute 'db'"):
        TestClient(resources.app).get("/leases")
