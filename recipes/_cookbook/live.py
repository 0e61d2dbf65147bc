"""The site with every recipe's app at `/live/<topic>/<pattern>/`."""

import asyncio
import importlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from recipes._cookbook.catalogue import Recipe, problems, recipes
from recipes._cookbook.servers import Servers

START_SECONDS = 30.0
PATIENCE_SECONDS = 15.0  # for all recipes; who needs longer starts beside the others
STOP_SECONDS = 1.0

logger = logging.getLogger("uvicorn.error")


def live_app(
    site: Path, servers: Servers, stopping: Callable[[], bool] = lambda: False
) -> FastAPI:
    """Serve the built `site`, the recipes, and `/live/status.json`.

    uvicorn acts on no signal until this has started: `stopping` tells of one.

    The status is `{"recipes": {"sse/feed": null}}`: null for one that runs, else
    one line that says why it does not.
    """
    hosted = [Hosted(recipe, servers) for recipe in recipes()]
    unread = {f"{p.path.parent.name}/{p.path.stem}": str(p) for p in problems()}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with _environment(servers.urls):  # where the recipes read it
            for one in hosted:  # an import holds up those that wait for a server
                one.load()
            starts = [asyncio.create_task(one.start()) for one in hosted]
            pending = set(starts)
            until = time.monotonic() + PATIENCE_SECONDS
            while pending and not stopping() and time.monotonic() < until:
                pending = (await asyncio.wait(pending, timeout=0.1))[1]
            try:
                yield
            finally:
                await asyncio.gather(*(one.stop() for one in hosted), *starts)

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.get("/live/status.json")
    async def status() -> dict[str, dict[str, str | None]]:
        found = {one.recipe.name: one.error for one in hosted}
        return {"recipes": found | unread}

    for one in hosted:
        app.mount(f"/live/{one.recipe.name}", one)
    app.frontend("/", directory=site, fallback="404.html")
    return app


@dataclass
class Hosted:
    """One recipe's app inside ours: Starlette runs no lifespan of a mounted app.

    Each lifespan has a task of its own, so that one that fails, hangs or cancels
    itself does not take the others down. They share one event loop and its threads.
    """

    recipe: Recipe
    servers: Servers
    error: str | None = "It is still starting."
    _module: ModuleType | None = None
    _app: ASGIApp | None = None
    _state: Mapping[str, Any] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    def load(self) -> None:
        """Import its module."""
        name = f"recipes.{self.recipe.topic}.{self.recipe.stem}"
        try:
            self._module = importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - a recipe may raise anything
            self.error = _one_line(error)

    async def start(self) -> None:
        """Return when it runs, or when it is known that it does not."""
        urls, errors = self.servers.urls, self.servers.errors
        missing = [name for name in self.recipe.servers if name not in urls]
        if missing:
            self.error = errors.get(missing[0], f"{missing[0]} is not set.")
        elif self._module is not None:
            self._task = asyncio.create_task(self._live(self._module.app))
            await self._settled.wait()
        if self.error:
            logger.warning("%s does not run: %s", self.recipe.name, self.error)

    async def stop(self) -> None:
        self._stop.set()
        if self._task is None:
            return
        done, _ = await asyncio.wait([self._task], timeout=STOP_SECONDS)
        if not done:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
        self._settled.set()

    async def _live(self, app: FastAPI) -> None:
        """Be the lifespan, from its start to its end."""
        try:
            async with AsyncExitStack() as stack:
                lifespan = app.router.lifespan_context(app)
                async with asyncio.timeout(START_SECONDS):
                    state = await stack.enter_async_context(lifespan)
                self._app, self._state, self.error = app, state or {}, None
                self._settled.set()
                await self._stop.wait()
        except BaseException as error:  # noqa: BLE001 - a recipe may raise anything
            self.error = _one_line(error)
        finally:
            self._settled.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve with the recipe's own lifespan state in the place of ours."""
        if self._app is None or self.error:
            await _unavailable(scope, receive, send)
        else:
            scope["state"] = dict(self._state)
            await self._app(scope, receive, send)


async def _unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        response = PlainTextResponse("This recipe is not running.", status_code=503)
        await response(scope, receive, send)
    else:
        await receive()
        await send({"type": "websocket.close", "code": 1013})


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else f"It raised {type(error).__name__}."
