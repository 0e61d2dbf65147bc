"""Fixtures: recipes on real servers, and the databases they need."""

import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import pytest

from recipes._cookbook import servers
from recipes._cookbook.catalogue import ROOT
from tests.harness.served import Options
from tests.harness.server import Server

# A file runs in one worker, so the long ones start first.
LONG = ("test_schemathesis.py", "test_examples.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


class Serve(Protocol):
    """Starts `target` and stops it after the test, or after the last of the file."""

    def __call__(
        self,
        target: str,
        *,
        env: dict[str, str] | None = None,
        strict: bool = True,
        must_start: bool = True,
        **uvicorn: Any,
    ) -> Server:
        """A running server; `strict` fails the test if it blocks or leaks.

        With `must_start=False` it may fail to start or to stop: after the test it is
        killed, so that nothing is checked.
        """


@contextmanager
def serving(folder: Path) -> Iterator[Serve]:
    """Servers that log to `folder`; at the end all are stopped and checked."""
    numbers = itertools.count(1)
    started: list[Server] = []

    def start(
        target: str,
        *,
        env: dict[str, str] | None = None,
        strict: bool = True,
        must_start: bool = True,
        **uvicorn: Any,
    ) -> Server:
        log = folder / f"server-{next(numbers)}.log"
        options = Options(target, log, env or {}, strict, uvicorn)
        server = Server(options, must_start=must_start)
        started.append(server)
        return server

    yield start
    troubles: list[str] = []
    with ExitStack() as stack:
        for server in started:
            stack.callback(server.kill)
        for server in started:
            found = server.stop() if server.must_start else []
            if server.options.strict and found:
                troubles += [server.options.target, *found, server.log]
    if troubles:
        pytest.fail("\n".join(troubles), pytrace=False)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with serving(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def serve_for_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Servers that the tests of a file share."""
    with serving(tmp_path_factory.mktemp("servers")) as start:
        yield start


@pytest.fixture
def recipe(request: pytest.FixtureRequest, serve: Serve) -> Server:
    """The recipe of this test module: `behavior/sse/test_feed.py` -> `sse/feed`."""
    topic, stem = _topic_and_stem(request.path)
    return serve(f"recipes.{topic}.{stem}", env=environment(request, topic, stem))


@pytest.fixture
def naive(request: pytest.FixtureRequest, serve: Serve) -> Server:
    """The naive form next to this test module, free to block and leak."""
    topic, stem = _topic_and_stem(request.path)
    target = f"tests.behavior.{topic}.naive_{stem}"
    return serve(target, env=environment(request, topic, stem), strict=False)


def _topic_and_stem(path: Path) -> tuple[str, str]:
    return path.parent.name, path.stem.removeprefix("test_")


def environment(
    request: pytest.FixtureRequest, topic: str, stem: str
) -> dict[str, str]:
    """A fresh database for each server variable that the recipe reads."""
    source = (ROOT / "recipes" / topic / f"{stem}.py").read_text("utf-8")
    makers = {
        "DATABASE_URL": "new_database",
        "REDIS_URL": "redis_url",
        "MONGODB_URL": "new_mongo_database",
    }
    found = {}
    for variable, fixture in makers.items():
        if f'"{variable}"' in source:
            value = request.getfixturevalue(fixture)
            found[variable] = value() if callable(value) else value
    return found


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server for this test process."""
    yield from one_server("DATABASE_URL")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Valkey server for this test process."""
    yield from one_server("REDIS_URL")


@pytest.fixture(scope="session")
def mongodb_url() -> Iterator[str]:
    """A MongoDB-compatible server for this test process."""
    yield from one_server("MONGODB_URL")


@pytest.fixture
def new_mongo_database(mongodb_url: str) -> Callable[[], str]:
    """Returns the URL of a database that nothing has used before."""
    return lambda: f"{mongodb_url.rstrip('/')}/test_{uuid.uuid4().hex}"


def one_server(variable: str) -> Iterator[str]:
    with servers.available((variable,)) as found:
        for error in found.errors.values():
            pytest.fail(error, pytrace=False)
        yield found.urls[variable]


@pytest.fixture
def new_database(postgres_url: str) -> Iterator[Callable[[], str]]:
    """Makes an empty database and returns its URL; all are dropped after the test."""
    import asyncio

    made: list[str] = []

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(postgres_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def make() -> str:
        name = f"test_{uuid.uuid4().hex}"
        asyncio.run(execute(f'CREATE DATABASE "{name}"'))
        made.append(name)
        return postgres_url.rpartition("/")[0] + f"/{name}"

    yield make
    for name in made:
        asyncio.run(execute(f'DROP DATABASE "{name}" WITH (FORCE)'))
