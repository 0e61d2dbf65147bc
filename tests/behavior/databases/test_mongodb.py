"""databases/mongodb: ids that are found again, 409 for a duplicate, 503 if it is down.

The server is SecantusDB, which is MongoDB-compatible.
"""

import ast
import asyncio
import importlib.metadata
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import httpx2
import pytest
from fastapi.testclient import TestClient
from pymongo import AsyncMongoClient

from recipes.databases import mongodb
from recipes.databases.mongodb import NO_URL
from tests.conftest import Serve
from tests.harness.server import Server, run_script

NewDatabase = Callable[[], str]
RECIPE = "recipes.databases.mongodb"
NAIVE = "tests.behavior.databases.naive_mongodb"
IMPATIENT = "tests.behavior.databases.impatient_mongodb"
TEA = {"sku": "tea-1", "name": "Green tea"}


@pytest.fixture(scope="module")
def servers(mongodb_url: str, serve_for_file: Serve) -> dict[str, Server]:
    def start(target: str) -> Server:
        env = {"MONGODB_URL": f"{mongodb_url.rstrip('/')}/test_{uuid4().hex}"}
        return serve_for_file(target, env=env, strict=target == RECIPE)

    return {target: start(target) for target in (RECIPE, NAIVE)}


@pytest.fixture
async def recipe(servers: dict[str, Server]) -> Server:
    return await emptied(servers[RECIPE])


@pytest.fixture
async def naive(servers: dict[str, Server]) -> Server:
    return await emptied(servers[NAIVE])


async def emptied(server: Server) -> Server:
    async with database(server) as client:
        await client.get_default_database().products.delete_many({})
    return server


def alone(server: Server) -> httpx2.AsyncClient:
    """A client with a connection for each request: uvicorn closes it after a 500."""
    return server.client(headers={"Connection": "close"})


async def create(client: httpx2.AsyncClient, sku: str = "tea-1") -> int:
    new = {"sku": sku, "name": "Green tea"}
    return (await client.post("/products", json=new)).status_code


@pytest.mark.defect("D16", "D17")
async def test_the_id_that_post_returns_is_found(recipe: Server, naive: Server) -> None:
    async def created_then_read(server: Server, path: str) -> tuple[int, object]:
        async with alone(server) as client:
            created = await client.post("/products", json={**TEA, "sku": path})
            number = created.json()["id"]
            found = await client.get(f"{path}/{number}")
            return found.status_code, found.text == created.text and len(number)

    assert await created_then_read(recipe, "/products") == (200, 24)
    assert await created_then_read(naive, "/products") == (404, False)
    assert await created_then_read(naive, "/products/by-object-id") == (500, False)
    naive.wait_for_log("'ObjectId' object is not iterable")


@pytest.mark.defect("D18")
def test_it_does_not_use_a_driver_that_is_deprecated() -> None:
    warning = "Motor will be deprecated on May 14th, 2026"
    assert warning in str(importlib.metadata.metadata("motor").json["description"])
    assert "motor" not in imported(Path(mongodb.__file__))
    naive = Path(__file__).with_name("naive_mongodb.py")
    assert "motor" in imported(naive)  # and no warning at run time says so


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return {name.partition(".")[0] for name in names}


@pytest.mark.defect("D19")
async def test_the_client_chooses_neither_id_nor_other_fields(
    recipe: Server, naive: Server
) -> None:
    async def stored(server: Server) -> dict[str, object] | None:
        chosen = {**TEA, "_id": "mine", "id": "mine", "admin": True}
        async with alone(server) as client:
            assert (await client.post("/products", json=chosen)).status_code == 201
        async with database(server) as client:
            found = await client.get_default_database().products.find_one()
            return found and dict(found)

    ours, theirs = await stored(recipe), await stored(naive)
    assert ours is not None
    assert theirs is not None
    assert set(ours) == {"_id", "sku", "name"}
    assert ours["_id"] != "mine"
    assert theirs["_id"] == "mine"
    assert theirs["admin"] is True


@asynccontextmanager
async def database(
    server: Server,
) -> AsyncIterator["AsyncMongoClient[dict[str, object]]"]:
    """A client of our own for the database that `server` uses."""
    url = server.options.env["MONGODB_URL"]
    client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(url)
    async with client:
        yield client


@pytest.mark.defect("D20")
async def test_a_duplicate_is_a_conflict(recipe: Server, naive: Server) -> None:
    async def twice(server: Server) -> list[int]:
        product = {**TEA, "_id": "mine"}
        async with alone(server) as client:
            posts = [await client.post("/products", json=product) for _ in "12"]
            return [response.status_code for response in posts]

    assert await twice(recipe) == [201, 409]
    assert await twice(naive) == [201, 500]
    naive.wait_for_log("DuplicateKeyError")


async def test_of_many_who_want_one_sku_one_gets_it(recipe: Server) -> None:
    """More than connections, and the second time none."""
    async with alone(recipe) as client:
        answers = await asyncio.gather(*(create(client) for _ in range(50)))
        assert Counter(answers) == {201: 1, 409: 49}
        assert await create(client) == 409
        assert await create(client, "tea-2") == 201


async def test_bad_input_is_refused(recipe: Server) -> None:
    async with alone(recipe) as client:
        assert await create(client) == 201
        for sku in (None, "", 1, {"$ne": None}, ["tea-1"], "x" * 101):
            answer = await client.post("/products", json={**TEA, "sku": sku})
            assert answer.status_code == 422
        bodies: list[object] = [None, [], {}, {"sku": "tea-2"}]
        for body in bodies:
            assert (await client.post("/products", json=body)).status_code == 422
        large = {**TEA, "name": "x" * 2**16}
        assert (await client.post("/products", json=large)).status_code == 413
        for bad in (
            "1",
            "x" * 24,
            "0" * 25,
            "0" * 24 + "%0A",
            "%00",
            "é" * 12,
            "٣" * 24,
        ):
            assert (await client.get(f"/products/{bad}")).status_code == 422
            assert (await client.get(f"/products?after={bad}")).status_code == 422
        for operator in ("after[$gt]=", "after[$ne]=1"):  # no filter is made of it
            answer = await client.get(f"/products?{operator}")
            assert [each["sku"] for each in answer.json()] == ["tea-1"]


async def test_any_text_can_be_stored(recipe: Server) -> None:
    async with alone(recipe) as client:
        for text in ("\0", "$where", "a.b", "\N{GRINNING FACE}" * 100):
            new = {"sku": text, "name": text}
            created = await client.post("/products", json=new)
            assert created.status_code == 201
            assert created.json()["sku"] == text


async def test_pages_are_bounded_and_miss_nothing(recipe: Server) -> None:
    skus = [f"tea-{n}" for n in range(2 * mongodb.PAGE + 1)]
    pages: list[list[str]] = []
    async with alone(recipe) as client:
        assert (await client.get("/products")).json() == []
        async with database(recipe) as there:
            documents: list[dict[str, object]]
            documents = [{"sku": sku, "name": "Green tea"} for sku in skus]
            await there.get_default_database().products.insert_many(documents)
        params: dict[str, str] = {}
        while page := (await client.get("/products", params=params)).json():
            pages.append([product["sku"] for product in page])
            params = {"after": page[-1]["id"]}
    assert [len(page) for page in pages] == [50, 50, 1]
    assert [sku for page in pages for sku in page] == skus


class Proxy:
    """Passes on what is sent to the database, refuses it, or keeps it."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._port = 0
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        place = f"mongodb://127.0.0.1:{self._port}{self._target.path}"
        return f"{place}?directConnection=true"

    async def listen(self) -> None:
        self._passes.set()
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self._port
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """As a server that has died."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._passes.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def hang(self) -> None:
        """As a server that is stuck, or behind a firewall."""
        self._passes.clear()

    async def _connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        there = await asyncio.open_connection(
            self._target.hostname, self._target.port or 27017
        )
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._passes.wait()
                writer.write(data)
        writer.close()
        self._writers.discard(writer)


@asynccontextmanager
async def behind_proxy(
    serve: Serve, target: str, url: str
) -> AsyncIterator[tuple[Server, Proxy]]:
    """Not strict: PyMongo does not wait until all its sockets are closed."""
    proxy = Proxy(url)
    await proxy.listen()
    try:
        env = {"MONGODB_URL": proxy.url}
        server = await asyncio.to_thread(serve, target, env=env, strict=False)
        yield server, proxy
        await asyncio.to_thread(server.stop)  # closes what is still open
    finally:
        await proxy.refuse()


async def test_a_server_that_is_down_is_503_and_not_a_wait_of_30_seconds(
    serve: Serve, new_mongo_database: NewDatabase
) -> None:
    """For a stop, too: a plain `close()` waits for 30 seconds, `wait` does for 20."""
    async with (
        behind_proxy(serve, IMPATIENT, new_mongo_database()) as (recipe, to_recipe),
        behind_proxy(serve, NAIVE, new_mongo_database()) as (naive, to_naive),
        alone(recipe) as client,
        alone(naive) as careless,
    ):
        assert await create(client) == 201
        assert await create(careless) == 201
        await to_recipe.refuse()
        await to_naive.refuse()
        hanging = asyncio.create_task(create(careless, "tea-2"))
        for attempt in range(2):  # the first finds that its connection is lost
            answer = await client.post("/products", json={**TEA, "sku": f"{attempt}"})
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "2"
            assert answer.json() == {"detail": "Try again later"}
        assert "database: 127.0.0.1" in recipe.log
        assert not hanging.done()
        hanging.cancel()
        naive.kill()
        await to_recipe.listen()
        async with asyncio.timeout(20):  # a heartbeat finds that it is back
            while await create(client, "tea-2") != 201:
                pass
        await to_recipe.refuse()
        recipe.terminate()
        assert await asyncio.to_thread(recipe.wait) == -15


async def test_a_server_that_hangs_is_503_for_ten_times_the_connections(
    serve: Serve, new_mongo_database: NewDatabase
) -> None:
    """And it does not hold up a stop."""
    url = new_mongo_database()
    async with behind_proxy(serve, IMPATIENT, url) as (server, proxy):
        async with alone(server) as client:
            assert await create(client) == 201
            proxy.hang()
            reads = (client.get("/products") for _ in range(20))
            answers = [answer.status_code for answer in await asyncio.gather(*reads)]
            assert Counter(answers) == {503: 20}
        server.terminate()
        assert await asyncio.to_thread(server.wait) == -15


def test_without_a_server_it_does_not_start(serve: Serve) -> None:
    with pytest.raises(RuntimeError, match="ServerSelectionTimeoutError"):
        serve(IMPATIENT, env={"MONGODB_URL": "mongodb://127.0.0.1:1/app"})


async def test_each_start_has_a_client_of_its_own(
    monkeypatch: pytest.MonkeyPatch, new_mongo_database: NewDatabase
) -> None:
    """A client made at import belongs to the first loop that uses it."""
    monkeypatch.setenv("MONGODB_URL", url := new_mongo_database())

    def two_loops() -> list[int]:
        found = []
        for _ in range(2):
            with TestClient(mongodb.app) as client:
                found.append(client.get("/products").status_code)
        return found

    assert await asyncio.to_thread(two_loops) == [200, 200]
    shared: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(url)
    async with shared:
        await shared.aconnect()

        async def elsewhere() -> None:
            await shared.get_default_database().products.find_one()

        with pytest.raises(RuntimeError, match="AsyncMongoClient in different event"):
            await asyncio.to_thread(asyncio.run, elsewhere())


async def test_a_document_without_a_field_is_a_server_error(recipe: Server) -> None:
    async with database(recipe) as client, alone(recipe) as reader:
        await client.get_default_database().products.insert_one({"sku": "old"})
        assert (await reader.get("/products")).status_code == 500


async def test_what_changes_from_motor(new_mongo_database: NewDatabase) -> None:
    client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(new_mongo_database())
    async with client:
        products = client.get_default_database().products
        await products.insert_one({"sku": "tea-1"})
        match = [{"$match": {"sku": "tea-1"}}]
        assert [each["sku"] async for each in await products.aggregate(match)] == [
            "tea-1"
        ]
        assert len(await (await products.list_indexes()).to_list()) == 1
        assert len(await products.find().to_list()) == 1
    assert asyncio.iscoroutinefunction(client.close)


def test_workers_start_at_once(serve: Serve, new_mongo_database: NewDatabase) -> None:
    env = {"MONGODB_URL": new_mongo_database()}

    def start(_: int) -> int:
        server = serve(RECIPE, env=env)
        return httpx2.get(f"{server.url}/products").status_code

    with ThreadPoolExecutor() as threads:
        assert list(threads.map(start, range(2))) == [200, 200]


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"MONGODB_URL": ""}
    path = Path(mongodb.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve(RECIPE, env=no_url)
