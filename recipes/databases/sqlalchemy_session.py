# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165",
#   "sqlalchemy[asyncio]>=2.1"]
# ///
"""Commit before the answer with SQLAlchemy.

One engine for the app; in the endpoint, one `async with sessions.begin()` for
each unit of work. When the block ends, it commits (or rolls back after an exception)
and returns the connection to the pool. Only then is the response sent: a failed commit
is never a 200, and the next request reads what this one wrote.

**Use when** an endpoint writes to a database through SQLAlchemy. **Not when** you
write the SQL yourself: a plain asyncpg pool is enough.

Gotchas:

- A `get_db()` that commits after its `yield` does so after the response was sent. With
  `Depends(..., scope="function")` it is in time, but no endpoint can catch its error.
- Without `expire_on_commit=False` the row cannot be read after its block:
  `DetachedInstanceError`, or `MissingGreenlet` where the session is still open.
- "connect() got an unexpected keyword argument 'sslmode'": for asyncpg it is `?ssl=`.
- If the connection breaks during COMMIT, you cannot know whether it was done: make a
  retry safe (here it gets 409). The three handlers catch timeouts of the whole app.
- Not covered: migrations (`create_all` is for the demo), serialization failures, a
  connection that breaks in a statement (500; the next request gets a new one).

Try it:

    POST /members {"email": "ada@example.com"}  # 201, the second time 409
    GET /members/2147483647  # 404
    GET /members/2147483648  # 422: too large for the column

Keywords: AsyncSession, transaction, get_db, read your writes, PostgreSQL, QueuePool
Related: lifespan/resources, background/after_response
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, FastAPI, HTTPException, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, EmailStr
from sqlalchemy import exc, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

POOL_SIZE = 10  # times the number of workers, it must be below max_connections
POOL_TIMEOUT = 2  # seconds to wait for a free connection
COMMAND_TIMEOUT = 5  # seconds for a statement, and for a new connection
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"

Sessions = async_sessionmaker[AsyncSession]


class Base(DeclarativeBase): ...


class Member(Base):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str | None]  # never in a response


class PublicMember(BaseModel):
    id: int
    email: str


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Sessions]]:
    if not (url := os.environ.get("DATABASE_URL")):
        raise RuntimeError(NO_URL)
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_pre_ping=True,  # replaces connections that died, as after a restart
        hide_parameters=True,  # a logged error shows no values
        connect_args={"timeout": COMMAND_TIMEOUT, "command_timeout": COMMAND_TIMEOUT},
    )
    try:
        async with engine.begin() as connection:  # demo; one worker at a time
            await connection.execute(select(func.pg_advisory_xact_lock(1)))
            await connection.run_sync(Base.metadata.create_all)
        yield {"sessions": async_sessionmaker(engine, expire_on_commit=False)}
    finally:
        await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.exception_handler(exc.TimeoutError)  # no connection is free
@app.exception_handler(TimeoutError)  # the database is slow
@app.exception_handler(ConnectionError)  # or gone
async def unavailable(_: Request, error: Exception) -> JSONResponse:
    logging.getLogger(__name__).warning("database: %r", error)
    return JSONResponse({"detail": "Try again later"}, 503, {"Retry-After": "2"})


Email = Annotated[EmailStr, Body(embed=True)]
Id = Annotated[int, Path(ge=1, le=2**31 - 1)]  # what INTEGER can hold


@app.post("/members", status_code=201, response_model=PublicMember)
async def join(request: Request, response: Response, email: Email) -> Member:
    sessions: Sessions = request.state.sessions
    member = Member(email=email)
    try:
        async with sessions.begin() as session:
            session.add(member)
    except exc.IntegrityError:  # outside the block: it may come with the COMMIT
        raise HTTPException(409, "This email is taken") from None
    response.headers["Location"] = f"members/{member.id}"  # relative: any prefix
    return member


@app.get("/members/{member_id}", response_model=PublicMember)
async def read(request: Request, member_id: Id) -> Member:
    sessions: Sessions = request.state.sessions
    async with sessions.begin() as session:
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
        answers = [client.post("/members", json=new) for _ in range(2)]
        print([answer.status_code for answer in answers])
        # > [201, 409]
        print(list(client.get(answers[0].headers["Location"]).json()))
        # > ['id', 'email']


if __name__ == "__main__":
    main()
