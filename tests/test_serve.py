"""`recipes serve`, the main job: it starts, answers, and leaves nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from recipes._cookbook import serve
from recipes._cookbook.catalogue import ROOT, SERVER_VARIABLES, recipes

READY = re.compile(r"Ready: (http://\S+)")


@contextmanager
def served(*arguments: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    variables = {k: v for k, v in os.environ.items() if k not in SERVER_VARIABLES}
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes", "serve", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=variables | {"TMPDIR": str(folder)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until_ready(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """What it printed, and the address that it names."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if match := READY.search(line):
            return printed, match[1]
    pytest.fail(f"it ended: {printed}")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)  # `nobody` must reach the data of PostgreSQL
        yield Path(name)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)]
)
def test_it_serves_and_a_signal_ends_it_with_all_its_servers(
    folder: Path, number: signal.Signals, status: int
) -> None:
    with served("--port", "0", folder=folder) as process:
        printed, url = read_until_ready(process)
        assert printed.count("✓") == 4, printed
        page = httpx2.get(f"{url}recipes/sse/feed/")
        assert page.status_code == 200
        assert "Stream a live feed" in page.text
        live = httpx2.get(f"{url}live/status.json").json()["recipes"]
        assert live == {recipe.name: None for recipe in recipes()}
        started = psutil.Process(process.pid).children()
        assert len(started) >= 3
        # An open stream, and a reader that does not leave, may not hold it up.
        with httpx2.stream("GET", f"{url}live/sse/feed/feed") as stream:
            assert stream.status_code == 200
            process.send_signal(number)
            assert process.wait(30) == status
        assert [child for child in started if child.is_running()] == []
        assert "Traceback" not in process.stdout.read()  # type: ignore[union-attr]
    # background/temporary_files keeps its own folder, which it locks, and it is empty.
    left = [path for path in folder.rglob("*") if path.name != f"reports-{os.getuid()}"]
    assert left == []


def test_a_taken_port_is_one_line_at_once(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with served("--port", str(port), folder=folder) as process:
            assert process.stdout is not None
            printed = process.stdout.read()
            assert process.wait(30) == 1
    expected = f"Cannot serve on 127.0.0.1:{port}: Address already in use."
    assert printed == f"{expected} Try another `--port`.\n"


@pytest.mark.parametrize("port", ["70000", "http"])
def test_a_bad_port_is_no_traceback(folder: Path, port: str) -> None:
    with served("--port", port, folder=folder) as process:
        assert process.stdout is not None
        assert "Traceback" not in process.stdout.read()
        assert process.wait(30) in {1, 2}


@pytest.mark.parametrize(
    ("lines", "numbers"),
    [
        (1, (signal.SIGTERM, signal.SIGTERM)),  # while servers start
        (1, (signal.SIGINT,)),
        (4, (signal.SIGINT, signal.SIGINT)),  # while the site is built
    ],
)
def test_signals_while_it_starts_leave_nothing(
    folder: Path, lines: int, numbers: tuple[signal.Signals, ...]
) -> None:
    with served("--port", "0", folder=folder) as process:
        assert process.stdout is not None
        for _ in range(lines):
            process.stdout.readline()
        for number in numbers:
            process.send_signal(number)
        assert process.wait(30) in {0, 130, 143}
        assert "Traceback" not in process.stdout.read()
    # background/temporary_files keeps its own folder, which it locks, and it is empty.
    left = [path for path in folder.rglob("*") if path.name != f"reports-{os.getuid()}"]
    assert left == []
    assert [
        p for p in psutil.process_iter(["cmdline"]) if str(folder) in str(p.info)
    ] == []


@pytest.mark.parametrize("host", ["nope.invalid", "a" * 64])
def test_a_host_that_does_not_exist_is_one_line(folder: Path, host: str) -> None:
    with served("--host", host, "--port", "0", folder=folder) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
    assert printed == f"There is no host {host!r}. Try another `--host`.\n"


def test_a_fault_in_a_page_is_told_and_the_others_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("[gone](gone.md)")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\n")
    monkeypatch.setattr(serve, "ROOT", tmp_path)
    [complaint] = serve.build_site(tmp_path / "site", "http://127.0.0.1:1/")
    assert "gone.md" in complaint
    assert (tmp_path / "site/index.html").exists()


def test_a_site_that_does_not_build_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mkdocs.yml").write_text("site_name: x\n")
    monkeypatch.setattr(serve, "ROOT", tmp_path)
    with pytest.raises(serve.ServeError, match=r"does not build: .*docs_dir"):
        serve.build_site(tmp_path / "site", "http://127.0.0.1:1/")
