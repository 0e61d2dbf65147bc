# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Open resources in order and close them in reverse.

Each is an async context manager, as most clients are; the lifespan enters them with
time limits. When the second fails to open, the first is closed and uvicorn exits with
status 3. A close that raises or hangs does not keep the others from closing.

**Use when** an app needs a pool, a client or a lease for as long as it lives.
**Not when** each request needs its own: use a dependency with `yield`.

Gotchas:

- uvicorn ignores SIGTERM and Ctrl-C until the app has started: without a limit, only
  SIGKILL ends a start that hangs.
- `asyncio.timeout` does not stop a thread, and the process waits for it at exit. A
  blocking driver needs its own timeout, here `timeout=2`.
- With `lifespan=`, `@app.on_event` handlers are silently ignored. A router's
  `lifespan=` runs; that of a mounted app does not.
- `TestClient(app)` without `with` runs none: "'State' object has no attribute 'db'".
- Starlette's `Request[State]` fails in FastAPI: "Invalid args for response field".
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
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from fastapi import FastAPI, Request

OPEN_SECONDS = 10.0
CLOSE_SECONDS = 5.0  # for each: keep the sum below what SIGTERM leaves before SIGKILL
logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class TimeLimited(Generic[T]):
    name: str
    resource: AbstractAsyncContextManager[T]

    async def __aenter__(self) -> T:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                opened = await self.resource.__aenter__()
        except Exception as error:
            error.add_note(f"while opening {self.name}")
            raise
        logger.info("opened %s", self.name)
        return opened

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:  # logged, not raised: that would hide why the app could not start
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.resource.__aexit__(kind, error, trace)
            logger.info("closed %s", self.name)
        except Exception:
            logger.exception("could not close %s", self.name)


@asynccontextmanager
async def open_database(path: str) -> AsyncIterator[sqlite3.Connection]:  # demo
    db = await asyncio.to_thread(
        sqlite3.connect, path, timeout=2, isolation_level=None, check_same_thread=False
    )
    try:  # from here on there is something to close
        await asyncio.to_thread(db.execute, "CREATE TABLE IF NOT EXISTS lease (worker)")
        yield db
    finally:
        await asyncio.to_thread(db.close)


@asynccontextmanager
async def hold_lease(db: sqlite3.Connection) -> AsyncIterator[str]:  # demo
    """A row that says: this worker lives. `db` must outlive it."""
    row = [secrets.token_hex(4)]
    try:  # around the INSERT too: after a timeout its thread continues
        await asyncio.to_thread(db.execute, "INSERT INTO lease VALUES (?)", row)
        yield row[0]
    finally:
        await asyncio.to_thread(db.execute, "DELETE FROM lease WHERE worker=?", row)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, object]]:
    path = os.environ.get("LEASES_FILE", ":memory:")  # demo
    async with (
        TimeLimited("database", open_database(path)) as db,  # demo: your client
        TimeLimited("lease", hold_lease(db)) as lease,  # demo: what needs it
    ):
        lock = threading.Lock()  # demo: their waits add up; a pool needs no lock
        yield {"db": db, "lock": lock, "lease": lease}  # demo: in `request.state`


app = FastAPI(lifespan=lifespan)


@app.get("/leases")
def leases(request: Request) -> dict[str, list[str]]:  # demo; `def`: SQLite blocks
    db: sqlite3.Connection = request.state.db
    with request.state.lock:  # unlocked, threads read each other's rows, or none
        rows = db.execute("SELECT worker FROM lease LIMIT 100").fetchall()
    return {"mine": [request.state.lease], "all": [lease for (lease,) in rows]}


# --- evidence ---
def main() -> None:
    from contextlib import suppress
    from io import StringIO
    from unittest.mock import Mock, patch

    from fastapi.testclient import TestClient

    logger.setLevel(logging.INFO)
    for token_hex in secrets.token_hex, Mock(side_effect=OSError("no lease today")):
        logger.addHandler(log := logging.StreamHandler(StringIO()))
        leasing = patch.object(secrets, "token_hex", token_hex)
        with leasing, suppress(OSError), TestClient(app):
            pass
        print(*log.stream.getvalue().splitlines(), sep=", ")
        # > opened database, opened lease, closed lease, closed database
        # > opened database, closed database


if __name__ == "__main__":
    main()
