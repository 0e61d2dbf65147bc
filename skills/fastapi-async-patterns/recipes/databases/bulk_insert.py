# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165",
#   "sqlalchemy[asyncio]>=2.1"]
# ///
"""Insert thousands of rows in a few statements.

SQLAlchemy sends 1,000 rows with each statement. `ON CONFLICT DO NOTHING` skips the rows
that are already stored, `RETURNING` tells which are new, and the response lists the
others as taken. One transaction stores all new rows or none, so a client that got no
response sends the same batch again.

**Use when** a client sends many rows at once. **Not when** there are a million: take
them as a file (streaming/upload), and load it with COPY in a job.

Gotchas:

- `max_length` does not limit the 422, which has an entry for each bad item: 100 kB of
  `[1,1,…` get 7 MB back. `FailFast` stops at the first one.
- "deadlock detected": two batches with the same rows in another order. Sort the rows.
- `ON CONFLICT DO UPDATE` and a row that is in the batch twice: "ON CONFLICT DO UPDATE
  command cannot affect row a second time".
- If another transaction inserts the same row, this one waits until that one ends.
- Not covered: 503 for a database that is down or busy: databases/sqlalchemy_session.

Try it:

    POST /devices [{"serial": "A-1", "model": "lamp"}, {"serial": "A-2", "model": "tv"}]
    POST /devices [{"serial": "B-1", "model": "lamp"}, 2, 3]  # 422: names the first one

Keywords: batch, bulk insert, IntegrityError, ON CONFLICT, upsert, insertmanyvalues
Related: databases/sqlalchemy_session, databases/concurrent_writes
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, FailFast, Field
from sqlalchemy import make_url, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

MAX_ROWS = 5000
MAX_BYTES = 1024 * 1024
LIMITS = {"timeout": 5, "command_timeout": 5}  # seconds: to connect, for a statement
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"


class Base(DeclarativeBase): ...


class Device(Base):
    __tablename__ = "devices"
    serial: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str]
    secret_hash: Mapped[str | None]  # never in a response


class NewDevice(BaseModel):
    serial: str = Field(pattern="^[A-Z0-9-]{1,40}$")
    model: str = Field(pattern="^[a-z0-9-]{1,40}$")


Size = Field(min_length=1, max_length=MAX_ROWS)
Batch = Annotated[list[NewDevice], Size, FailFast()]


class Report(BaseModel):
    created: int
    taken: list[str]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, object]]:
    if not (database := os.environ.get("DATABASE_URL")):
        raise RuntimeError(NO_URL)
    url = make_url(database).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, pool_pre_ping=True, connect_args=LIMITS)
    try:
        async with engine.begin() as connection:  # demo: your migrations
            await connection.execute(text("SELECT pg_advisory_xact_lock(1)"))  # demo
            await connection.run_sync(Base.metadata.create_all)  # demo
        yield {"sessions": async_sessionmaker(engine)}
    finally:
        await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def short_422() -> AsyncIterator[None]:
    try:
        yield
    except RequestValidationError as invalid:  # repeats the input, up to MAX_BYTES
        error = invalid.errors()[0]
        detail = {key: error[key] for key in ("type", "loc", "msg")}
        raise HTTPException(422, [detail]) from None


@app.post("/devices", max_body_size=MAX_BYTES, dependencies=[Depends(short_422)])
async def add_devices(request: Request, batch: Batch) -> Report:
    sessions: async_sessionmaker[AsyncSession] = request.state.sessions
    rows = {new.serial: new.model_dump() for new in batch}
    if len(rows) < len(batch):
        raise HTTPException(422, "A serial is in the batch twice")
    # In the same order in every transaction: two that share rows do not deadlock.
    in_order = [rows[serial] for serial in sorted(rows)]
    add = insert(Device).on_conflict_do_nothing(index_elements=[Device.serial])
    async with sessions.begin() as session:
        created = set(await session.scalars(add.returning(Device.serial), in_order))
    return Report(created=len(created), taken=sorted(rows.keys() - created))


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient
    from sqlalchemy import event

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    run = os.urandom(8).hex().upper()
    batch = [{"serial": f"{run}-{n}", "model": "lamp"} for n in range(3000)]
    sent: list[object] = []
    with TestClient(app) as client:
        engine = client.app_state["sessions"].kw["bind"].sync_engine
        event.listen(engine, "before_cursor_execute", lambda *a: sent.append(a))
        for devices in batch[:1000], batch:
            sent.clear()
            report = client.post("/devices", json=devices).json()
            print(report["created"], len(report["taken"]), f"{len(sent)} statements")
            # > 1000 0 1 statements
            # > 2000 1000 3 statements


if __name__ == "__main__":
    main()
