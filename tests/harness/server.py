"""A recipe on a real uvicorn, in a process that can be stopped, killed and read."""

import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import httpx2

from tests.harness import served

# Forked from a process that has imported these once: a start takes milliseconds.
PRELOAD = [
    "tests.harness.served",
    "asyncpg",
    "cashews",
    "fastapi.sse",
    "fastapi.testclient",
    "httpcore2",
    "httpx2",
    "jinja2",
    "multipart",
    "pymongo",
    "redis.asyncio",
    "sqlalchemy.ext.asyncio",
    "stamina",
    "tortoise.contrib.fastapi",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
    "websockets",
]
START_SECONDS = 30
STOP_SECONDS = 20
SCRIPT_SECONDS = 50

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


class Server:
    """One app on a free loopback port. Use `serve`, which also stops it.

    With `must_start=False` it may fail to start, or hang: nothing waits for it.
    """

    def __init__(self, options: served.Options, *, must_start: bool = True) -> None:
        self.options = options
        self.must_start = must_start
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._report, theirs = _context.Pipe(duplex=False)
        self._process: ForkServerProcess = _context.Process(
            target=served.run, args=(options, listener, theirs), daemon=True
        )
        self._killed = False
        self._troubles: list[str] | None = None
        self._process.start()
        listener.close()  # only the child answers, so a dead child refuses
        theirs.close()
        if must_start and self._next_report(START_SECONDS) != "ready":
            self.kill()
            raise RuntimeError(f"{options.target} did not start:\n{self.log}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    @property
    def log(self) -> str:
        """What the process has printed and logged so far."""
        log = self.options.log
        return log.read_text(errors="replace") if log.exists() else ""

    def wait_for_log(self, text: str, seconds: float = 20) -> str:
        """Wait until `text` is in the log; for use from a thread or a sync test."""
        deadline = time.monotonic() + seconds
        while text not in self.log:
            assert time.monotonic() < deadline, f"{text!r} is not in:\n{self.log}"
            time.sleep(0.02)
        return self.log

    def client(self, **options: object) -> httpx2.AsyncClient:
        """An HTTP client with this server as its base and a 20 s timeout."""
        defaults: dict[str, object] = {"base_url": self.url, "timeout": 20}
        return httpx2.AsyncClient(**(defaults | options))  # type: ignore[arg-type]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, as a deploy does, and do not wait."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, as a crash does, and wait."""
        self._killed |= self.is_running
        self._process.kill()
        self._process.join()

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit status, once the process has ended; negative: a signal."""
        self._process.join(seconds)
        status = self._process.exitcode
        assert status is not None, f"still running after {seconds} s:\n{self.log}"
        return status

    def stop(self) -> list[str]:
        """Stop it if it runs; what it leaked, one line each. Empty after a kill."""
        if self.is_running:
            self.terminate()
        try:
            self.wait()
        finally:
            killed = self._killed
            self.kill()
        if self._troubles is None:
            report = self._next_report(0)
            if report == "ready":  # nobody has waited for it
                report = self._next_report(0)
            silent = [] if killed else ["it ended without a report"]
            self._troubles = report if isinstance(report, list) else silent
        return self._troubles

    def _next_report(self, seconds: float) -> object:
        try:
            return self._report.recv() if self._report.poll(seconds) else None
        except EOFError:
            return None


def run_script(path: Path, folder: Path, env: dict[str, str]) -> tuple[int, str, str]:
    """Run a file as `python path` does, from `folder`: exit status, stdout, stderr.

    It is forked from a process with everything imported, which saves a second each.
    """
    log = folder / f"{path.stem}.log"
    process = _context.Process(target=served.script, args=(path, folder, log, env))
    process.start()
    process.join(SCRIPT_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{path} still runs after {SCRIPT_SECONDS} s")
    printed, logged = (
        p.read_text(errors="replace") for p in (log, log.with_suffix(".err"))
    )
    return process.exitcode, printed, logged
