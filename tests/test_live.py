"""Every recipe in one app: each as promised, none takes the others down."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import anyio
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from recipes._cookbook import live, pages
from recipes._cookbook.catalogue import (
    SERVER_VARIABLES,
    Problem,
    Recipe,
    parse,
    recipe_paths,
    recipes,
)
from recipes._cookbook.catalogue import Request as Line
from recipes._cookbook.servers import Servers

STATUS = "/live/status.json"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text("<p>home")
    (folder / "404.html").write_text("<p>not here")
    return folder


@pytest.fixture(scope="module")
def client(
    site: Path, postgres_url: str, redis_url: str, mongodb_url: str
) -> Iterator[TestClient]:
    """All recipes, started once."""
    urls = postgres_url, redis_url, mongodb_url
    servers = Servers(dict(zip(SERVER_VARIABLES, urls, strict=True)), {})
    with TestClient(live.live_app(site, servers)) as client:
        yield client


def test_every_recipe_runs(client: TestClient) -> None:
    status = client.get(STATUS).json()["recipes"]
    assert status == {recipe.name: None for recipe in recipes()}


def test_the_site_is_served_beside_them(client: TestClient) -> None:
    assert client.get("/").text == "<p>home"
    missing = client.get("/nope/", headers={"accept": "text/html"})
    assert (missing.status_code, missing.text) == (404, "<p>not here")


@pytest.mark.parametrize("path", recipe_paths(), ids=lambda path: path.stem)
def test_the_requests_of_its_page_answer(path: Path, client: TestClient) -> None:
    recipe = parse(path)
    for line in recipe.requests:
        send(client, f"/live/{recipe.name}{line.path}", line)


def send(client: TestClient, url: str, line: Line) -> None:
    """Do what the page's panel does, and check the status that its note promises."""
    if line.method == "WS":
        with client.websocket_connect(url) as socket:
            if line.body:
                socket.send_text(line.body)
                assert socket.receive_text()
        return
    if line.method == "SSE":
        with client.stream("GET", url) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
        return
    options: dict[str, object] = {}
    if line.body.endswith("=@"):
        options["files"] = {line.body.removesuffix("=@"): ("name.txt", b"content")}
    elif line.body:
        kind = "application/json" if line.body[0] in '{["' else "text/plain"
        options["content"] = line.body
        options["headers"] = {"content-type": kind}
    response = client.request(line.method, url, **options)  # type: ignore[arg-type]
    if line.status is None:
        assert response.status_code < 400, response.text
    else:
        assert response.status_code == line.status, response.text


def hosted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, apps: dict[str, FastAPI | None]
) -> None:
    """Let the live app find these apps in the place of the recipes."""
    found = []
    for stem, app in apps.items():
        path = tmp_path / "routes" / f"{stem}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text((recipe_paths()[0]).read_text())
        found.append(parse(path))
        if app is not None:
            module = ModuleType(stem)
            vars(module)["app"] = app
            monkeypatch.setitem(sys.modules, f"recipes.routes.{stem}", module)
    monkeypatch.setattr(live, "recipes", lambda: tuple(found))


def app_with(lifespan: object) -> FastAPI:
    app = FastAPI(lifespan=lifespan)  # type: ignore[arg-type]

    @app.get("/state")
    async def state(request: Request) -> str:
        return str(request.state.name)

    return app


def test_one_that_fails_to_start_says_why_and_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Path
) -> None:
    closed: list[str] = []

    @asynccontextmanager
    async def fine(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"name": "fine"}
        closed.append("fine")

    @asynccontextmanager
    async def raises(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no such host\nand more")
        yield

    @asynccontextmanager
    async def exits(_: FastAPI) -> AsyncIterator[None]:
        sys.exit("Set DATABASE_URL")
        yield

    apps = {
        "raises": app_with(raises),
        "exits": app_with(exits),
        "missing": None,
        "fine": app_with(fine),
    }
    hosted(monkeypatch, tmp_path, apps)
    with TestClient(live.live_app(site, Servers({}, {}))) as client:
        status = client.get(STATUS).json()["recipes"]
        assert status == {
            "routes/raises": "no such host",
            "routes/exits": "Set DATABASE_URL",
            "routes/missing": "No module named 'recipes.routes.missing'",
            "routes/fine": None,
        }
        assert client.get("/live/routes/fine/state").json() == "fine"
        assert client.get("/live/routes/raises/state").status_code == 503
    assert closed == ["fine"]


def test_one_that_hangs_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Path
) -> None:
    cleaned: list[str] = []

    @asynccontextmanager
    async def never_starts(_: FastAPI) -> AsyncIterator[None]:
        try:
            await anyio.sleep_forever()
            yield
        finally:
            cleaned.append("never started")

    @asynccontextmanager
    async def never_stops(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"name": "never stops"}
        await anyio.sleep_forever()

    monkeypatch.setattr(live, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(live, "STOP_SECONDS", 0.2)
    apps = {"a": app_with(never_starts), "b": app_with(never_stops)}
    hosted(monkeypatch, tmp_path, dict(apps))
    with TestClient(live.live_app(site, Servers({}, {}))) as client:
        status = client.get(STATUS).json()["recipes"]
        assert status["routes/a"] == "It is still starting."
        assert client.get("/live/routes/b/state").json() == "never stops"
    assert cleaned == ["never started"]


def test_a_signal_ends_the_wait_for_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Path
) -> None:
    @asynccontextmanager
    async def never_starts(_: FastAPI) -> AsyncIterator[None]:
        await anyio.sleep_forever()
        yield

    monkeypatch.setattr(live, "PATIENCE_SECONDS", 3600)
    monkeypatch.setattr(live, "STOP_SECONDS", 0.2)
    hosted(monkeypatch, tmp_path, {"a": app_with(never_starts)})
    app = live.live_app(site, Servers({}, {}), stopping=lambda: True)
    with TestClient(app) as client:
        status = client.get(STATUS).json()["recipes"]
        assert status["routes/a"] == "It is still starting."


def test_one_that_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Path
) -> None:
    @asynccontextmanager
    async def never_starts(_: FastAPI) -> AsyncIterator[None]:
        await anyio.sleep_forever()
        yield

    monkeypatch.setattr(live, "START_SECONDS", 0.2)
    hosted(monkeypatch, tmp_path, {"a": app_with(never_starts)})
    with TestClient(live.live_app(site, Servers({}, {}))) as client:
        status = client.get(STATUS).json()["recipes"]
        assert status["routes/a"] == "It raised TimeoutError."


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, SystemExit]
)
def test_one_that_raises_anything_is_marked(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    site: Path,
    error: type[BaseException],
) -> None:
    @asynccontextmanager
    async def raises(_: FastAPI) -> AsyncIterator[None]:
        raise error
        yield

    hosted(monkeypatch, tmp_path, {"a": app_with(raises)})
    with TestClient(live.live_app(site, Servers({}, {}))) as client:
        status = client.get(STATUS).json()["recipes"]
        assert status["routes/a"] == f"It raised {error.__name__}."


def test_a_recipe_whose_server_is_missing_is_marked(site: Path) -> None:
    needs = [recipe for recipe in recipes() if needs_database(recipe)]
    assert needs
    errors = {"DATABASE_URL": "PostgreSQL has no wheel for this system"}
    with TestClient(live.live_app(site, Servers({}, errors))) as client:
        status = client.get(STATUS).json()["recipes"]
        assert {status[recipe.name] for recipe in needs} == set(errors.values())
        assert status["sse/feed"] is None


def needs_database(recipe: Recipe) -> bool:
    return "DATABASE_URL" in recipe.servers


def test_a_recipe_that_cannot_be_read_is_marked(
    monkeypatch: pytest.MonkeyPatch, site: Path
) -> None:
    problem = Problem(Path("recipes/sse/torn.py"), 3, "does not parse")
    monkeypatch.setattr(live, "problems", lambda: (problem,))
    monkeypatch.setattr(pages, "problems", lambda: (problem,))
    with TestClient(live.live_app(site, Servers({}, {}))) as client:
        status = client.get(STATUS).json()["recipes"]
        assert status["sse/torn"] == "recipes/sse/torn.py:3: does not parse"
        assert status["sse/feed"] is None
    [page] = [p for p in pages.generated() if p.uri == "recipes/sse/torn.md"]
    assert "recipes/sse/torn.py:3: does not parse" in page.text
