"""The other side of `Server`: one app under uvicorn in a process of its own.

The process reports when it is ready, and after its shutdown what it leaked. In
strict mode a blocking call in the event loop raises, and warnings are errors.
"""

import asyncio
import gc
import importlib
import logging
import os
import runpy
import socket
import sys
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from blockbuster import BlockBuster

GRACE_SECONDS = 5
_ASYNCPG_READS_FILES = {"_parse_connect_dsn_and_args"}
_PYMONGO_READS_FILES = {"get_container_env_info"}
_REDIS_READS_FILES = {"get_lib_version"}


@dataclass(frozen=True)
class Options:
    """How to serve an app."""

    target: str
    """`module` or `module:attribute`; the attribute is `app` by default."""
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    strict: bool = True
    uvicorn: dict[str, Any] = field(default_factory=dict)


class _ReportingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, report: Connection) -> None:
        super().__init__(config)
        self.report = report
        self.troubles = _Troubles()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self.troubles.start()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.report.send("ready")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.report.send(await self.troubles.collect())


class _Troubles(logging.Handler):
    """What a served app did wrong, one line each."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []
        self.descriptors: dict[int, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"asyncio: {record.getMessage()}")

    async def start(self) -> None:
        """Listen for lost exceptions; what is open now does not count as a leak."""
        logging.getLogger("asyncio").addHandler(self)
        sys.unraisablehook = self._unraisable
        self.descriptors = await asyncio.to_thread(_open_descriptors)

    def _unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        self.lines.append(f"unraisable: {unraisable.exc_value!r}")
        sys.__unraisablehook__(unraisable)

    async def collect(self) -> list[str]:
        gc.collect()  # finalizers of abandoned generators become tasks
        for _ in range(10):  # transports close a turn of the loop after their owner
            await asyncio.sleep(0)
        await _end_worker_processes()
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        self.lines += [f"task left: {task!r}" for task in tasks if not task.done()]
        now = await asyncio.to_thread(_open_descriptors)
        self.lines += [
            f"file descriptor left: {number} {target}"
            for number, target in now.items()
            if self.descriptors.get(number) != target
            and target != os.devnull  # libuv keeps one in reserve while it listens
        ]
        return self.lines


async def _end_worker_processes() -> None:
    """Let AnyIO end them here: it would do so with the loop, after the report."""
    for task in asyncio.all_tasks():
        if task.get_name() == "AnyIO process pool shutdown task":
            task.cancel()
            await asyncio.wait([task])


def _open_descriptors() -> dict[int, str]:
    """What each open file descriptor refers to, where the system tells."""
    found = {}
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names only
        try:
            os.fstat(int(name))
        except OSError:
            continue  # it was the listing's own
        link = Path("/proc/self/fd", name)
        found[int(name)] = str(link.readlink()) if link.is_symlink() else ""
    return found


def run(options: Options, listener: socket.socket, report: Connection) -> None:
    """Serve until a signal arrives."""
    _write_to(options.log, 1, 2)
    os.environ.update(options.env)
    if options.strict:
        warnings.simplefilter("error")
    module, _, attribute = options.target.partition(":")
    app = getattr(importlib.import_module(module), attribute or "app")
    defaults = {"timeout_graceful_shutdown": GRACE_SECONDS}
    config = uvicorn.Config(app, **(defaults | options.uvicorn))
    if options.strict:
        blockbuster = BlockBuster()
        for function in blockbuster.functions.values():
            # asyncpg looks for ~/.pgpass and TLS files on each connect: not ours.
            function.can_block_in("asyncpg/connect_utils.py", _ASYNCPG_READS_FILES)
            # Pydantic reads the version of email-validator for a schema with EmailStr.
            function.can_block_in("pydantic/networks.py", {"import_email_validator"})
            # PyMongo looks for /.dockerenv, once for each client.
            function.can_block_in("pymongo/pool_options.py", _PYMONGO_READS_FILES)
            # redis-py looks up its own version on each connect.
            function.can_block_in("redis/utils.py", _REDIS_READS_FILES)
        blockbuster.activate()
    _ReportingServer(config, report).run(sockets=[listener])


def script(path: Path, folder: Path, log: Path, env: dict[str, str]) -> None:
    """Be `python path`, started in `folder`."""
    _write_to(log, 1)
    _write_to(log.with_suffix(".err"), 2)
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = [str(path)]
    sys.path[0] = str(path.parent)
    warnings.simplefilter("error")
    runpy.run_path(str(path), run_name="__main__")


def _write_to(log: Path, *standard: int) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in standard:
        os.dup2(descriptor, number)
    os.close(descriptor)
