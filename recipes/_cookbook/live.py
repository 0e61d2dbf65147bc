"""The site with every recipe's app at `/live/<topic>/<pattern>/`."""

import asyncio
import importlib
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from recipes._cookbook.catalogue import Recipe, recipes
from recipes._cookbook.servers import Servers

START_SECONDS = 30.0
STOP_SECONDS = 1.0

logger = logging.getLogger("uvicorn.error")


def live_app(site: Path, servers: Servers) -> FastAPI:
    """Serve the built `site`, the recipes, and `/live/status.json`.

    The status is `{"recipes": {"sse/feed": null}}`: null for one that runs, else
    one line that says why it does not.
    """
    hosted = [Hosted(recipe) for recipe in recipes()]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for one in hosted:  # in turn: each reads the environment that is set for it
            await one.start(servers)
        try:
            yield
        finally:
            await asyncio.gather(*(one.stop() for one in hosted))

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.get("/live/status.json")
    async def status() -> dict[str, dict[str, str | None]]:
        return {"recipes": {one.recipe.name: one.error for one in hosted}}

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
    error: str | None = "It has not been started."
    _app: ASGIApp | None = None
    _state: Mapping[str, Any] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, servers: Servers) -> None:
        missing = [n for n in self.recipe.servers if n not in servers.urls]
        if missing:
            self.error = servers.errors.get(missing[0], f"{missing[0]} is not set.")
            return
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with _environment({n: servers.urls[n] for n in self.recipe.servers}):
            self._task = asyncio.create_task(self._live(started))
            try:
                async with asyncio.timeout(START_SECONDS):
                    await started
            except TimeoutError:
                self.error = f"It did not start within {START_SECONDS:.0f} seconds."
                self._task.cancel()
            except Exception as error:  # noqa: BLE001 - a recipe may raise anything
                self.error = _one_line(error)
            else:
                self.error = None
        if self.error:
            logger.warning("%s could not start: %s", self.recipe.name, self.error)

    async def stop(self) -> None:
        self._stop.set()
        if self._task is None:
            return
        done, _ = await asyncio.wait([self._task], timeout=STOP_SECONDS)
        if not done:
            logger.warning("%s did not stop in time", self.recipe.name)
            self._task.cancel()
            await asyncio.wait([self._task], timeout=STOP_SECONDS)

    async def _live(self, started: "asyncio.Future[None]") -> None:
        try:
            name = f"recipes.{self.recipe.topic}.{self.recipe.stem}"
            app: FastAPI = importlib.import_module(name).app
            async with app.router.lifespan_context(app) as state:
                self._app, self._state = app, state or {}
                if not started.done():  # else it was given up in this turn of the loop
                    started.set_result(None)
                await self._stop.wait()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - see the class
            if started.done():
                self.error = _one_line(error)
                logger.warning("%s: %s", self.recipe.name, self.error)
            else:
                started.set_exception(RuntimeError(_one_line(error)))

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
    return lines[0] if lines else type(error).__name__
