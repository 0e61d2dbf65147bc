"""PostgreSQL as tests see it: a look at it from beside the app, and its bad days."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from tests.harness.served import Options
from tests.harness.server import Server

OTHERS = """
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
WAITING = """
    SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
    WHERE NOT granted AND datname = current_database()
"""


async def execute(url: str, command: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(command)
    finally:
        await connection.close()


@contextmanager
def shared_servers(
    postgres_url: str, folder: Path, schema: str, *targets: str, **env: str
) -> Iterator[list[Server]]:
    """A server for each target, each with a database of its own, for a whole file."""
    with ExitStack() as stack:
        servers: list[Server] = []
        for number, target in enumerate(targets):
            name = f"shared_{uuid4().hex}"
            asyncio.run(execute(postgres_url, f"CREATE DATABASE {name}"))
            drop = f"DROP DATABASE {name} WITH (FORCE)"
            stack.callback(lambda drop: asyncio.run(execute(postgres_url, drop)), drop)
            url = postgres_url.rpartition("/")[0] + f"/{name}"
            asyncio.run(execute(url, schema))
            # A module that patches both forms imports the naive one next to the recipe.
            strict = "naive" not in target
            options = Options(
                target, folder / f"log-{number}", env | {"DATABASE_URL": url}, strict
            )
            servers.append(Server(options))
            stack.callback(servers[-1].kill)
        yield servers
        for server in servers:
            troubles = server.stop()
            strict = server.options.strict
            assert not (strict and troubles), f"{troubles}\n{server.log}"


@asynccontextmanager
async def database(server: Server) -> AsyncIterator[Any]:
    """A connection of our own to the database that `server` uses."""
    connection = await asyncpg.connect(server.options.env["DATABASE_URL"])
    try:
        yield connection
    finally:
        await connection.close()


async def until(database: Any, query: str, wanted: int = 1) -> None:
    """Wait until `query` counts `wanted`."""
    async with asyncio.timeout(20):
        while await database.fetchval(query) != wanted:
            await asyncio.sleep(0.01)


async def disconnect_others(database: Any) -> None:
    """What a restart of PostgreSQL does to the connections of the app."""
    await database.execute("SELECT pg_terminate_backend(pid, 20_000)" + OTHERS)


async def statuses_while_connections_die(
    server: Server, send: Callable[[int], Awaitable[int]]
) -> set[int]:
    """What ten clients get while the app's connections are killed at any moment."""
    found: set[int] = set()
    numbers = itertools.count()
    over = asyncio.Event()

    async def one() -> None:
        while not over.is_set():
            found.add(await send(next(numbers)))

    async with database(server) as connection, asyncio.TaskGroup() as clients:
        for _ in range(10):
            clients.create_task(one())
        for _ in range(200):
            await connection.execute("SELECT pg_terminate_backend(pid)" + OTHERS)
            await asyncio.sleep(0.005)  # some get so far
        over.set()
    return found


class Proxy:
    """The way to the database, which can be cut, or frozen."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.port
        self._target = parts.port
        self._url = url
        self._ends: set[asyncio.StreamWriter] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()

    async def __aenter__(self) -> Self:
        await self.open(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def open(self, port: int) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = self._url.replace(f":{self._target}/", f":{self.port}/")

    def freeze(self) -> None:
        """As a host that is gone without a word."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    async def cut(self) -> None:
        self._server.close()
        for end in self._ends:
            end.transport.abort()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        theirs, to = await asyncio.open_connection("127.0.0.1", self._target)
        self._ends |= {writer, to}
        await asyncio.gather(self._pipe(reader, to), self._pipe(theirs, writer))

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                await self._thawed.wait()
                writer.write(chunk)
        writer.close()
