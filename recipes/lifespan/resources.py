# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Open resources in order and close them in reverse.

Each is an async context manager, entered by the lifespan. When the second fails to
open, the first is closed and uvicorn exits with status 3. A close that raises or
hangs does not keep the others from closing.

**Use when** an app needs a pool, a client or a lease for as long as it lives.
**Not when** each request needs its own: take a dependency with `yield`.

Gotchas:

- uvicorn ignores SIGTERM and Ctrl-C until the app has started: without a limit, only
  SIGKILL ends a start that hangs.
- `asyncio.timeout` does not stop a thread, and the process waits for it at exit. A
  blocking driver needs its own timeout, here `timeout=2`.
- With `lifespan=`, `@app.on_event` handlers are silently ignored. A router's
  `lifespan=` runs; that of a mounted app does not.
- `TestClient(app)` without `with` runs none: "'State' object has no attribute 'db'".
- Pass clients as they are, `bounded("redis", Redis.from_url(url))`: they know how to
  close. redis-py's `close()`: "Call to deprecated close. (Use aclose() instead)".
- Each worker opens its own. SIGKILL closes nothing, so a real lease has an expiry.

Try it:

    GET /leases

Keywords: startup, shutdown, on_event, AsyncExitStack, app state, connection pool
Related: lifespan/http_client, databases/sqlalchemy_session, sse/feed
"""

import asyncio
import logging
import os
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypedDict, TypeVar

from fastapi import FastAPI, Request

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 5.0  # for each: keep the sum below what SIGTERM leaves before SIGKILL
logger = logging.getLogger(__name__)
T = TypeVar("T")


@asynccontextmanager
async def bounded(
    name: str, resource: AbstractAsyncContextManager[T]
) -> AsyncIterator[T]:
    """Limit how long `resource` takes to open and to close."""
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            opened = await resource.__aenter__()  # by hand: each half is limited
    except Exception as error:
        error.add_note(f"while opening {name}")
        raise
    logger.info("opened %s", name)
    try:
        yield opened
    finally:
        try:  # logged, not raised: that would hide why the app could not start
            async with asyncio.timeout(CLOSE_SECONDS):
                await resource.__aexit__(None, None, None)
            logger.info("closed %s", name)
        except Exception:
            logger.exception("could not close %s", name)


@asynccontextmanager
async def open_database(path: str) -> AsyncIterator[sqlite3.Connection]:
    db = await asyncio.to_thread(
        sqlite3.connect, path, timeout=2, isolation_level=None, check_same_thread=False
    )
    try:  # from here on there is something to close
        await asyncio.to_thread(db.execute, "CREATE TABLE IF NOT EXISTS lease (worker)")
        yield db
    finally:
        await asyncio.to_thread(db.close)


@asynccontextmanager
async def hold_lease(db: sqlite3.Connection) -> AsyncIterator[str]:
    """A row that says: this worker lives. `db` must outlive it."""
    worker = secrets.token_hex(4)
    try:  # around the insert too: after a timeout its thread goes on
        await asyncio.to_thread(db.execute, "INSERT INTO lease VALUES (?)", [worker])
        yield worker
    finally:
        await asyncio.to_thread(
            db.execute, "DELETE FROM lease WHERE worker=?", [worker]
        )


class State(TypedDict):
    db: sqlite3.Connection
    worker: str


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[State]:
    path = os.environ.get("LEASES_FILE", ":memory:")
    async with (
        bounded("database", open_database(path)) as db,
        bounded("lease", hold_lease(db)) as worker,
    ):
        yield {"db": db, "worker": worker}


app = FastAPI(lifespan=lifespan)


@app.get("/leases")
def leases(request: Request) -> dict[str, list[str]]:  # `def`: SQLite blocks
    db: sqlite3.Connection = request.state.db
    rows = db.execute("SELECT worker FROM lease LIMIT 100").fetchall()
    return {"mine": [request.state.worker], "all": [worker for (worker,) in rows]}


# --- evidence ---
def main() -> None:
    from contextlib import closing, suppress
    from io import StringIO
    from tempfile import TemporaryDirectory
    from unittest.mock import patch

    from fastapi.testclient import TestClient

    logger.setLevel(logging.INFO)
    with TemporaryDirectory() as folder:
        broken = f"{folder}/broken"
        with closing(sqlite3.connect(broken)) as db:
            db.execute("CREATE TABLE lease (not_what, we_expect)")
        for path in f"{folder}/leases", broken:
            logger.addHandler(log := logging.StreamHandler(StringIO()))
            here = patch.dict(os.environ, LEASES_FILE=path)
            with here, suppress(sqlite3.OperationalError), TestClient(app):
                pass
            print(*log.stream.getvalue().splitlines(), sep=", ")
            # > opened database, opened lease, closed lease, closed database
            # > opened database, closed database


if __name__ == "__main__":
    main()
