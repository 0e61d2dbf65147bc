# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165",
#   "sqlalchemy[asyncio]>=2.1"]
# ///
"""Commit before the response is sent, with SQLAlchemy.

Each unit of work is one `async with transaction(request)` in the endpoint. At its end
it commits and returns the connection. Only then is the response sent: a failed commit
is never a 200, and the next request reads what this one wrote.

**Use when** an endpoint writes to a database through SQLAlchemy. **Not when** you
write the SQL yourself: a plain asyncpg pool is enough.

Gotchas:

- A `get_db()` that commits after its `yield` does so after the response was sent. With
  `Depends(..., scope="function")` it is in time, but no endpoint can catch its error.
- `DetachedInstanceError`, `MissingGreenlet`: `expire_on_commit=False` is missing.
- Call nothing but the database in the block: any `OSError` in it becomes the 503.
- "connect() got an unexpected keyword argument 'sslmode'": for asyncpg it is `?ssl=`.
- If COMMIT loses its connection, it may be done or not: make retries safe (here 409).
- Start uvicorn with `--timeout-graceful-shutdown 10`: a stalled body holds up a stop.
- Not covered: serialization failures; NaN in a body, see background/after_response.

Try it:

    POST /members {"email": "ada@example.com"}  # 201, the second time 409
    GET /members/2147483647  # 404

Keywords: AsyncSession, transaction, get_db, read your writes, PostgreSQL, QueuePool
Related: lifespan/resources, background/after_response
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import BaseModel, EmailStr
from sqlalchemy import exc, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

POOL_SIZE = 10  # times the number of workers, it must be below max_connections
POOL_TIMEOUT = 2  # seconds to wait for a free connection
COMMAND_TIMEOUT = 5  # seconds for a statement, and for a new connection
UNUSABLE = "08", "53", "57"  # SQLSTATE: connection lost, server full, starting
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"
MemberId = Annotated[int, Path(ge=1, le=2**31 - 1)]  # what INTEGER can hold


class Base(DeclarativeBase): ...


class Member(Base):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str | None]  # never in a response


class NewMember(BaseModel):
    email: EmailStr


class PublicMember(BaseModel):
    id: int
    email: str


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, object]]:
    if not (url := os.environ.get("DATABASE_URL")):
        raise RuntimeError(NO_URL)
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_pre_ping=True,  # replaces connections that died, as after a restart
        hide_parameters=True,  # from the log; PostgreSQL's DETAIL still shows the row
        connect_args={"timeout": COMMAND_TIMEOUT, "command_timeout": COMMAND_TIMEOUT},
    )
    try:
        async with engine.begin() as connection:  # demo: your migrations
            await connection.execute(select(func.pg_advisory_xact_lock(1)))  # demo
            await connection.run_sync(Base.metadata.create_all)  # demo
        yield {"sessions": async_sessionmaker(engine, expire_on_commit=False)}
    finally:
        with suppress(TimeoutError):  # a server that hangs must not hold up the stop
            await asyncio.wait_for(engine.dispose(), COMMAND_TIMEOUT)


@asynccontextmanager
async def transaction(request: Request) -> AsyncIterator[AsyncSession]:
    """Commit when the block ends; 503 while the database cannot be used."""
    sessions: async_sessionmaker[AsyncSession] = request.state.sessions
    try:
        async with sessions.begin() as session:
            yield session
    except (exc.DBAPIError, exc.TimeoutError, OSError) as error:
        reported = getattr(error, "orig", None)  # without a state: it was lost
        if reported and (reported.sqlstate or "08")[:2] not in UNUSABLE:
            raise
        logging.getLogger(__name__).warning("database: %r", error)
        raise HTTPException(503, "Try again later", {"Retry-After": "2"}) from None


app = FastAPI(lifespan=lifespan)


@app.post("/members", status_code=201, response_model=PublicMember, max_body_size=2**16)
async def create_member(request: Request, new: NewMember) -> Member:
    member = Member(email=new.email)
    try:
        async with transaction(request) as session:
            session.add(member)
    except exc.IntegrityError:  # outside the block: it may come with the COMMIT
        raise HTTPException(409, "This email is taken") from None
    return member


@app.get("/members/{member_id}", response_model=PublicMember)
async def get_member(request: Request, member_id: MemberId) -> Member:
    async with transaction(request) as session:
        member = await session.get(Member, member_id)
    if member is None:
        raise HTTPException(404, "No such member")
    return member


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    new = {"email": f"{os.urandom(8).hex()}@example.com"}
    with TestClient(app) as client:
        created, again = (client.post("/members", json=new) for _ in range(2))
        print(created.status_code, again.status_code, list(created.json()))
        # > 201 409 ['id', 'email']


if __name__ == "__main__":
    main()
