"""Runs an app that somebody has written, and checks it from outside.

A grader is a class; its checks are methods, run in the order in which they stand. An
app that does not start, hangs or spins fails its checks with one line each.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import asyncpg
import httpx2
import psutil
import redis.asyncio
from websockets.asyncio.client import ClientConnection, connect

from recipes._cookbook import servers

START_SECONDS = 20.0
ALIVE_SECONDS = 5.0
CHECK_SECONDS = 12.0
TASK_SECONDS = 45.0
CACHES = 16  # the databases of a Valkey server

Method = TypeVar("Method", bound=Callable[..., Awaitable[None]])
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # making one takes long
_NOT_FOR_APPS = ("DATABASE_URL", "REDIS_URL", "MONGODB_URL", "PYTHONPATH")


class NoAppError(Exception):
    """There is no app to check; the message is one line."""


def check(sentence: str, *, trap: bool = False) -> Callable[[Method], Method]:
    """Makes a method a check. A trap is one that the naive form must fail."""

    def mark(method: Method) -> Method:
        method.check = (sentence, trap)  # type: ignore[attr-defined]
        return method

    return mark


@dataclass(frozen=True)
class Outcome:
    """What one check found."""

    check: str
    trap: bool
    trouble: str | None = None


@dataclass(frozen=True)
class Report:
    """What all checks of one task found."""

    task: str
    lines: int
    seconds: float
    outcomes: list[Outcome]

    @property
    def failed(self) -> list[Outcome]:
        """The checks that did not pass."""
        return [outcome for outcome in self.outcomes if outcome.trouble is not None]


class Bench:
    """The servers that graders share; each app gets its own database in them."""

    def __init__(self, urls: dict[str, str]) -> None:
        self.urls = urls
        self._caches = itertools.cycle(range(CACHES))

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[str]:
        """The URL of an empty PostgreSQL database."""
        server = self.urls["DATABASE_URL"]
        name = f"eval_{uuid.uuid4().hex}"
        await execute(server, f'CREATE DATABASE "{name}"')
        try:
            yield f"{server.rpartition('/')[0]}/{name}"
        finally:
            await execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')

    async def cache(self) -> str:
        """The URL of an empty Valkey database."""
        url = f"{self.urls['REDIS_URL'].rpartition('/')[0]}/{next(self._caches)}"
        async with redis.asyncio.from_url(url) as client:
            await client.flushdb()
        return url


@contextlib.contextmanager
def bench(needs: set[str]) -> Iterator[Bench]:
    """Start the servers behind the variables in `needs`."""
    with servers.available(tuple(sorted(needs))) as found:
        if found.errors:
            raise servers.ServerError("; ".join(found.errors.values()))
        yield Bench(found.urls)


async def execute(url: str, *statements: str) -> None:
    """Run SQL statements, each in its own transaction."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(url: str, query: str, *arguments: object) -> list[Any]:
    """The rows of a query."""
    connection = await asyncpg.connect(url)
    try:
        rows: list[Any] = await connection.fetch(query, *arguments)
        return rows
    finally:
        await connection.close()


class App:
    """`uvicorn app:app` in a process group of its own."""

    def __init__(self, file: Path, folder: Path, env: dict[str, str]) -> None:
        self.port = _free_port()
        self.log_path = folder / f"app-{self.port}.log"
        command = [sys.executable, "-m", "uvicorn", "app:app"]
        command += ["--app-dir", str(file.parent.resolve())]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ready(self) -> None:
        """Wait until it listens.

        Raises:
            NoAppError: It ended, or did not listen in time.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await self._listens():
                    if self.process.poll() is not None:
                        raise NoAppError(f"the app does not start: {self._reason()}")
                    await asyncio.sleep(0.03)
        except TimeoutError:
            message = f"the app does not start within {START_SECONDS:.0f} s"
            raise NoAppError(message) from None

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def answers(self) -> bool:
        """Whether it still answers requests, no matter how."""
        if self.process.poll() is not None:
            return False
        try:
            async with self.client(timeout=ALIVE_SECONDS) as client:
                await client.get("/-/nothing-is-here")
        except httpx2.HTTPError:
            return False
        return True

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx2.AsyncClient:
        """An HTTP client with this app as its base."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        defaults: dict[str, Any] = {"base_url": self.url, "timeout": CHECK_SECONDS}
        defaults |= {"limits": limits, "trust_env": False, "verify": _NO_TLS}
        return httpx2.AsyncClient(**(defaults | options))

    def websocket(self, path: str, **options: Any) -> connect:
        """A WebSocket client, to be used in `async with`."""
        defaults: dict[str, Any] = {"proxy": None, "close_timeout": 1}
        return connect(f"ws://127.0.0.1:{self.port}{path}", **(defaults | options))

    def terminate(self) -> None:
        """Send SIGTERM, as a deploy does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to it and to all that it has started, as a crash does."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    async def ended(self, seconds: float) -> bool:
        """Whether the process ends by itself in time."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    def memory(self) -> int:
        """Bytes that it and the processes that it has started hold."""
        main = psutil.Process(self.process.pid)
        processes = [main, *main.children(recursive=True)]
        return sum(process.memory_info().rss for process in processes)

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self.log_path.read_text(errors="replace")

    def _reason(self) -> str:
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        errors = [line for line in lines if "Error" in line]
        return (errors or lines or [f"exit status {self.process.returncode}"])[-1]


class Grader:
    """Checks one app. Subclasses say what it needs and add the checks."""

    needs: ClassVar[tuple[str, ...]] = ()
    """`DATABASE_URL`, `REDIS_URL`: each grading gets an empty one."""
    traps_only = False
    """Run the first check and the traps, which is all that a naive form is for."""

    def __init__(
        self, file: Path, bench: Bench, stack: contextlib.AsyncExitStack
    ) -> None:
        self.file = file
        self.bench = bench
        self.stack = stack
        self.env: dict[str, str] = {}
        """What the app finds in its environment."""
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._shared: App | None = None
        self._extra: list[App] = []

    async def setup(self) -> None:
        """Prepare what the app needs: tables, upstreams, files."""

    async def prepare(self) -> None:
        """Called once, before the first check."""
        if "DATABASE_URL" in self.needs:
            database = self.bench.database()
            self.env["DATABASE_URL"] = await self.stack.enter_async_context(database)
        if "REDIS_URL" in self.needs:
            self.env["REDIS_URL"] = await self.bench.cache()
        await self.setup()

    @property
    def database(self) -> str:
        """The URL of this grading's database."""
        return self.env["DATABASE_URL"]

    @property
    def app(self) -> App:
        """The app that most checks share; started anew if a check has wrecked it."""
        assert self._shared is not None
        return self._shared

    async def start(self, **env: str) -> App:
        """One more process of the app, for this check only."""
        inherited = {k: v for k, v in os.environ.items() if k not in _NOT_FOR_APPS}
        extra = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        app = App(self.file, self.folder, inherited | extra | self.env | env)
        self._extra.append(app)
        await app.ready()
        return app

    async def _heal(self) -> None:
        if self._shared is not None:
            if await self._shared.answers():
                return
            self._shared.kill()
        self._shared = await self.start()
        self._extra.remove(self._shared)

    def end(self) -> None:
        """End all processes of the app."""
        for app in [*self._extra, *([self._shared] if self._shared else [])]:
            app.kill()

    async def run(self) -> list[Outcome]:
        """All checks, one after the other, within the time of a task."""
        deadline = asyncio.get_running_loop().time() + TASK_SECONDS
        broken: str | None = None
        outcomes = []
        for sentence, trap, method in self.checks():
            trouble = broken
            if trouble is None:
                try:
                    async with asyncio.timeout_at(deadline):
                        trouble = await self._one(method)
                except NoAppError as error:
                    trouble = str(error)
                    broken = trouble if self._shared is None else None
                except TimeoutError:
                    trouble = broken = f"no time left after {TASK_SECONDS:.0f} s"
            outcomes.append(Outcome(sentence, trap, trouble))
        return outcomes

    async def _one(self, method: Callable[[], Awaitable[None]]) -> str | None:
        await self._heal()
        limit = asyncio.timeout(CHECK_SECONDS)
        try:
            async with limit:
                await method()
        except Exception as error:
            if isinstance(error, NoAppError):
                raise
            if isinstance(error, TimeoutError) and limit.expired():
                return f"not done after {CHECK_SECONDS:.0f} s"
            return _one_line(error)
        finally:
            for app in self._extra:
                app.kill()
            self._extra.clear()
        return None

    def checks(self) -> list[tuple[str, bool, Callable[[], Awaitable[None]]]]:
        """Each check: its sentence, whether it is a trap, and the method."""
        found = []
        for name, function in vars(type(self)).items():
            if marked := getattr(function, "check", None):
                found.append((*marked, getattr(self, name)))
        return [*found[:1], *(c for c in found[1:] if c[1] or not self.traps_only)]


def _one_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = str(error).splitlines() or [""]
    name = "" if isinstance(error, AssertionError) else type(error).__name__
    return ": ".join(part for part in (name, lines[0][:200]) if part) or "failed"


async def grade(
    task: str,
    grader: type[Grader],
    file: Path,
    bench: Bench,
    *,
    traps_only: bool = False,
) -> Report:
    """Run the checks of a task on `file`."""
    started = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        one = grader(file, bench, stack)
        one.traps_only = traps_only
        if not file.is_file():
            missing = "there is no app.py"
            outcomes = [Outcome(s, trap, missing) for s, trap, _ in one.checks()]
            return Report(task, 0, 0, outcomes)
        try:
            await one.prepare()
            outcomes = await one.run()
        finally:
            one.end()
    return Report(task, _lines(file), time.monotonic() - started, outcomes)


def _lines(file: Path) -> int:
    """Lines of code: neither blank nor a comment."""
    lines = (line.strip() for line in file.read_text(errors="replace").splitlines())
    return sum(1 for line in lines if line and not line.startswith("#"))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Asked:
    """A request that reached a fake upstream."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What a fake upstream answers; with `drip`, a byte at a time without an end."""

    body: bytes = b"{}"
    status: int = 200
    content_type: str = "application/json"
    drip: bool = False


Answer = Callable[[Asked], Awaitable[Reply]]


@dataclass
class Upstream:
    """A service that the app calls; counts what it sees. Use it in `async with`."""

    answer: Answer
    calls: list[Asked] = field(default_factory=list)
    abandoned: list[Asked] = field(default_factory=list)
    """Requests whose client hung up before the answer."""
    connections: int = 0
    running: int = 0
    most: int = 0
    """How many requests ran at once at most."""
    url: str = ""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0.01)

    def reset(self) -> None:
        """Forget what it has counted."""
        self.calls.clear()
        self.abandoned.clear()
        self.connections = self.most = 0

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._writers.discard(writer)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.strip().split("\r\n")
        method, path, _ = first.split(" ", 2)
        fields = (line.partition(":") for line in rest)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        asked = Asked(method, path, headers, body)
        self.calls.append(asked)
        self.running += 1
        self.most = max(self.most, self.running)
        answer = asyncio.ensure_future(self.answer(asked))
        left = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.abandoned.append(asked)
                return False
            await self._reply(writer, answer.result())
            return not left.done() and "close" not in headers.get("connection", "")
        finally:
            self.running -= 1
            for task in (answer, left):
                task.cancel()
            await asyncio.gather(answer, left, return_exceptions=True)

    async def _reply(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        length = 10_000_000 if reply.drip else len(reply.body)
        head = f"HTTP/1.1 {reply.status} Some Reason\r\ncontent-length: {length}\r\n"
        writer.write(f"{head}content-type: {reply.content_type}\r\n\r\n".encode())
        writer.write(reply.body)
        await writer.drain()
        while reply.drip:
            await asyncio.sleep(0.1)
            writer.write(b" ")
            await writer.drain()


async def until(
    condition: Callable[[], object], message: str, seconds: float = 8
) -> None:
    """Wait until `condition` holds; fails with `message` otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def during(work: Awaitable[object]) -> AsyncIterator["asyncio.Future[object]"]:
    """Something that goes on meanwhile; ends with the block."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def receive(websocket: ClientConnection, message: str, seconds: float = 6) -> Any:
    """The next message as JSON; fails with `message` if there is none."""
    import json

    try:
        async with asyncio.timeout(seconds):
            return json.loads(await websocket.recv())
    except TimeoutError:
        raise AssertionError(message) from None
