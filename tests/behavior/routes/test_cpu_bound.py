"""routes/cpu_bound: jobs run on other cores, and a bad one harms nobody."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import httpx2
import psutil
import pytest
from anyio import to_process
from fastapi.testclient import TestClient

from recipes.routes import cpu_bound
from tests.conftest import Serve
from tests.harness.server import Server

FEW = "tests.behavior.routes.few_workers"  # with one worker
TWO = {"WORKERS": "2"}
WAITING = 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where held jobs leave their pid and find "go"."""
    found = tmp_path / "jobs"
    found.mkdir()
    return found


def workers_of(server: Server) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(server.pid).children()
    return found


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def get(client: httpx2.AsyncClient, path: str, times: int = 1) -> list[asyncio.Task]:  # type: ignore[type-arg]
    return [asyncio.create_task(client.get(path)) for _ in range(times)]


class Load:
    """Four jobs: how many /health were answered meanwhile, and who computed."""

    async def put_on(self, server: Server) -> "Load":
        workers, main = workers_of(server), psutil.Process(server.pid)
        before = [seconds(process) for process in (main, *workers)]
        self.healthy = 0
        async with server.client() as client, server.client() as other:
            jobs = get(client, "/primes?below=100000", 4)
            while not all(job.done() for job in jobs):
                self.healthy += (await other.get("/health")).is_success
            assert all(job.result().is_success for job in jobs)
        after = [seconds(process) for process in (main, *workers)]
        spent = [b - a for a, b in zip(before, after, strict=True)]
        self.in_server = spent[0] / sum(spent)
        self.busy = sum(part > sum(spent) / 20 for part in spent[1:])
        return self


@pytest.mark.defect("D2", "D3")
async def test_jobs_use_other_cores_and_leave_the_server_free(
    recipe: Server, naive: Server
) -> None:
    good, bad = await Load().put_on(recipe), await Load().put_on(naive)
    assert good.busy == min(cpu_bound.WORKERS, 4)
    assert good.in_server < 0.7
    assert (bad.busy, bad.in_server) == (0, 1)
    assert good.healthy > 2 * bad.healthy


async def test_a_slow_start_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_bound, "WORKERS", 1)
    monkeypatch.setattr(cpu_bound, "JOB_SECONDS", 0)  # any start is slower
    async with cpu_bound.lifespan(cpu_bound.app) as state:
        assert state["workers"]


async def test_jobs_at_once_and_waiting_ones_are_bounded(
    serve: Serve, folder: Path
) -> None:
    server = serve(FEW, env=TWO)
    places = 2 + WAITING
    started = {process.pid for process in workers_of(server)}
    assert len(started) == 2  # before the first request
    async with server.client() as client, server.client() as other:
        calls = get(client, f"/hold?folder={folder}", 10 * places)
        await until(lambda: sum(call.done() for call in calls) == 9 * places)
        for call in calls:
            if call.done():
                assert call.result().status_code == 503
                assert call.result().headers["Retry-After"] == "10"
        await until(lambda: len(list(folder.iterdir())) == 2)
        assert (await other.get("/health")).json() == "ok"
        assert (await other.get("/jobs/getpid")).status_code == 503
        (folder / "go").touch()
        answers = await asyncio.gather(*calls)
        pids = [answer.json() for answer in answers if answer.is_success]
        assert (len(pids), set(pids)) == (places, started)
        assert (await other.get("/jobs/getpid")).is_success


async def test_a_job_that_never_ends_is_killed_and_replaced(serve: Serve) -> None:
    server = serve(FEW)
    (before,) = workers_of(server)
    async with server.client() as client:
        assert (await client.get("/spin")).status_code == 504
        assert not runs(before)
        assert (await client.get("/jobs/getpid")).json() != before.pid


async def test_a_job_that_raises_exits_or_kills_its_worker_fails_alone(
    serve: Serve, folder: Path
) -> None:
    server = serve(FEW, env=TWO)
    async with server.client() as client:
        (other,) = get(client, f"/hold?folder={folder}")
        await until(lambda: list(folder.iterdir()))
        for name in ("fail", "leave", "die"):
            async with server.client() as unlucky:  # uvicorn closes it after a 500
                assert (await unlucky.get(f"/jobs/{name}")).status_code == 500
        assert (await client.get("/jobs/getpid")).is_success
        (folder / "go").touch()
        assert (await other).is_success
    await asyncio.to_thread(server.stop)
    assert "ValueError: raised in the worker" in server.log
    assert "printed in the worker" not in server.log
    assert 'raise ValueError("raised' not in server.log  # the traceback stays there
    assert "RuntimeError: The job called sys.exit(no such option)." in server.log
    assert "BrokenWorkerProcess" in server.log


async def test_a_worker_that_dies_idle_fails_a_later_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AnyIO 4.16 kills those that were idle for long; this one is gone already."""
    pids = await asyncio.gather(*(to_process.run_sync(os.getpid) for _ in "12"))
    kept = await to_process.run_sync(os.getpid)
    [idle] = {*pids} - {kept}
    os.kill(idle, signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(idle))
    monkeypatch.setattr(to_process, "WORKER_MAX_IDLE_TIME", -1)
    with pytest.raises(ProcessLookupError):
        await to_process.run_sync(os.getpid)
    await to_process.run_sync(os.getpid)


def test_a_pool_of_the_standard_library_stays_broken() -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert pool.submit(os.getpid).result(20) != os.getpid()
        with pytest.raises(BrokenProcessPool):
            pool.submit(os._exit, 1).result(20)
        with pytest.raises(BrokenProcessPool):
            pool.submit(os.getpid).result(20)


async def test_a_client_that_disconnects_leaves_its_job_until_the_end(
    serve: Serve, folder: Path
) -> None:
    server = serve(FEW)
    async with server.client() as client:
        async with server.client() as gone:
            (call,) = get(gone, f"/hold?folder={folder}")
            await until(lambda: list(folder.iterdir()))
            waiting = get(gone, f"/hold?folder={folder}", 2 * WAITING)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)  # a 503
            for each in (call, *waiting):
                each.cancel()
        assert (await client.get("/jobs/getpid")).status_code == 503
        (folder / "go").touch()
        async with asyncio.timeout(20):
            while not (await client.get("/jobs/getpid")).is_success:
                await asyncio.sleep(0.01)


async def test_a_signal_to_all_processes_does_not_end_a_job(
    serve: Serve, folder: Path
) -> None:
    server = serve(FEW)
    workers = workers_of(server)
    async with server.client() as client:
        (call,) = get(client, f"/hold?folder={folder}")
        await until(lambda: list(folder.iterdir()))
        busy = psutil.Process(int(next(folder.iterdir()).name))
        for number in (signal.SIGINT, signal.SIGTERM):
            busy.send_signal(number)
        server.terminate()
        await asyncio.to_thread(server.wait_for_log, "Shutting down")
        (folder / "go").touch()
        assert (await call).is_success
    await asyncio.to_thread(server.wait)
    await until(lambda: not any(runs(process) for process in workers))


async def test_a_stop_with_a_limit_kills_jobs_and_leaves_no_process(
    serve: Serve, folder: Path
) -> None:
    server = serve(FEW, strict=False, timeout_graceful_shutdown=0.2)
    workers = workers_of(server)
    async with server.client() as client:
        calls = get(client, f"/hold?folder={folder}", 1 + WAITING)
        await until(lambda: list(folder.iterdir()))
        server.terminate()
        await asyncio.to_thread(server.wait)
        await asyncio.gather(*calls, return_exceptions=True)
    await until(lambda: not any(runs(process) for process in workers))


async def test_after_a_crash_a_worker_ends_when_its_job_does(
    serve: Serve, folder: Path
) -> None:
    server = serve(FEW)
    (worker,) = workers_of(server)
    async with server.client() as client:
        (call,) = get(client, f"/hold?folder={folder}")
        await until(lambda: list(folder.iterdir()))
        server.kill()
        await asyncio.gather(call, return_exceptions=True)
    assert runs(worker)
    (folder / "go").touch()
    await until(lambda: not runs(worker))


def test_what_is_too_much_is_refused() -> None:
    client = TestClient(cpu_bound.app)  # its lifespan does not run: no worker starts
    for below in ("200001", "-1", "x", "9" * 5000, "1.5", "%00", ""):
        assert client.get(f"/primes?below={below}").status_code == 422
