"""background/temporary_files: no end of a request or a process leaves files."""

import asyncio
import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from recipes.background import temporary_files
from tests.behavior.background.failing_report import FULL, WRONG
from tests.behavior.background.naive_temporary_files import app as naive_app
from tests.conftest import Serve
from tests.harness.server import Server

RECIPE = "recipes.background.temporary_files"
NAIVE = "tests.behavior.background.naive_temporary_files"
LARGE = 500_000  # rows: more than the buffers of the sockets hold


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "tmp"
    found.mkdir()
    return found


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests uses the folder, too: it is one more worker."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.fixture
def env(folder: Path) -> dict[str, str]:
    return {"TMPDIR": str(folder)}


@pytest.fixture
def recipe(serve: Serve, env: dict[str, str]) -> Server:
    return serve(RECIPE, env=env)


def files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.csv"))


def folders(folder: Path) -> list[Path]:
    """The folders of processes, and of requests."""
    return [*folder.glob("reports-*/*"), *folder.glob("reports-*/*/*")]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def get(server: Server, rows: int) -> httpx2.Response:
    async with server.client() as client:
        return await client.get(f"/report?rows={rows}")


@contextmanager
def downloading(server: Server) -> Iterator[socket.socket]:
    """A client that has read no more than the head."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        request = f"GET /report?rows={LARGE} HTTP/1.0\r\nHost: x\r\n\r\n"
        connection.sendall(request.encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield connection


def rest(connection: socket.socket) -> bytes:
    found = bytearray()
    while chunk := connection.recv(1 << 16):
        found += chunk
    return bytes(found)


@pytest.mark.defect("D29")
async def test_no_sleep_holds_up_a_stop(
    recipe: Server, serve: Serve, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "naive"
    other.mkdir()
    env = {"TMPDIR": str(other)}
    naive = serve(NAIVE, env=env, strict=False, timeout_graceful_shutdown=None)
    for server in (recipe, naive):
        assert (await get(server, 3)).text == "0,0\n1,1\n2,4\n"
    await until(lambda: not files(folder))
    assert files(other)
    recipe.terminate()
    naive.terminate()
    assert await asyncio.to_thread(recipe.wait) == -15
    assert folders(folder) == []
    await asyncio.to_thread(naive.wait_for_log, "Waiting for background tasks")
    assert naive.is_running
    naive.kill()


@pytest.mark.defect("D30")
async def test_the_next_start_deletes_what_a_crash_left(
    serve: Serve, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "naive"
    other.mkdir()
    apps = (temporary_files.app, RECIPE, folder, 0), (naive_app, NAIVE, other, 1)
    for app, target, place, left in apps:
        crashed = serve(target, env={"TMPDIR": str(place)}, strict=False)
        with downloading(crashed):
            assert len(files(place)) == 1
            crashed.kill()
        assert len(files(place)) == 1
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with TestClient(app):  # starts it in this process
            assert len(files(place)) == left
            assert len(folders(folder)) == 1 - left  # of this process


@pytest.mark.usefixtures("here")
async def test_a_start_keeps_the_files_of_processes_that_run(
    recipe: Server, folder: Path
) -> None:
    with downloading(recipe) as connection:
        with TestClient(temporary_files.app) as new:  # or the next version
            assert len(files(folder)) == 1
            assert new.get("/report?rows=1").is_success
        assert len(files(folder)) == 1
        body = await asyncio.to_thread(rest, connection)
        assert body.endswith(f"{LARGE - 1},{(LARGE - 1) ** 2}\n".encode())
    await until(lambda: not files(folder))


async def test_the_file_goes_with_its_client(recipe: Server, folder: Path) -> None:
    with downloading(recipe):
        assert len(files(folder)) == 1
    await until(lambda: len(folders(folder)) == 1)  # of the process
    assert "Exception" not in recipe.log


async def test_a_report_that_fails_leaves_nothing(
    serve: Serve, env: dict[str, str], folder: Path
) -> None:
    server = serve("tests.behavior.background.failing_report", env=env)
    for rows in (FULL, WRONG):
        assert (await get(server, rows)).status_code == rows
    await until(lambda: len(folders(folder)) == 1)
    async with server.client() as client:  # a folder with the scope of the function
        assert (await client.get("/too-early")).status_code == 500
    await asyncio.to_thread(server.wait_for_log, "report.csv does not exist.")


async def test_a_stop_that_cuts_a_download_off_leaves_nothing(
    serve: Serve, env: dict[str, str], folder: Path
) -> None:
    server = serve(RECIPE, env=env, strict=False, timeout_graceful_shutdown=0.2)
    with downloading(server):
        server.terminate()
        assert await asyncio.to_thread(server.wait) == -15
    assert folders(folder) == []


@pytest.mark.usefixtures("here")
def test_a_disk_that_is_full_before_the_report_is_a_507(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with TestClient(temporary_files.app) as client:
        monkeypatch.setattr(tempfile, "mkdtemp", full)
        assert client.get("/report?rows=1").status_code == 507


@pytest.mark.usefixtures("here")
def test_a_root_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(RuntimeError, match="reports-12345 belongs to another user"):
        TestClient(temporary_files.app).__enter__()


@pytest.mark.usefixtures("here")
def test_strays_in_the_root_do_not_stop_a_start(folder: Path) -> None:
    root = folder / f"reports-{os.getuid()}"
    root.mkdir()
    (root / "file").touch()
    (root / "link").symlink_to(folder)
    (folder / "kept").touch()
    with TestClient(temporary_files.app) as client:
        assert client.get("/report?rows=1").is_success
    assert (folder / "kept").exists()


@pytest.mark.usefixtures("here")
def test_what_is_too_much_is_refused() -> None:
    with TestClient(temporary_files.app) as client:
        for rows in ("0", str(LARGE + 1), "x", "9" * 5000, "1.5", "%00", ""):
            assert client.get(f"/report?rows={rows}").status_code == 422
