# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165",
#   "sqlalchemy[asyncio]>=2.1"]
# ///
"""Load a row with its related rows in a fixed number of statements.

`joinedload` loads an author in the statement of its post or comment. The comments may
be a million, so they have a statement with a `limit`. With `lazy="raise"` a
relationship that you forgot to load is an error in your first test.

**Use when** a response shows rows of several tables. **Not when** the queries have
nothing to do with each other: databases/sqlalchemy_parallel.

Gotchas:

- For a list that stays short, such as tags, `selectinload` takes one more statement.
- A forgotten option: "'Comment.author' is not available due to lazy='raise'". Without
  `lazy="raise"` it is `MissingGreenlet`; `awaitable_attrs` is one query per row.
- `gather` on one session: "This session is provisioning a new connection", a 500.
- Not covered: a database that is down or busy, see databases/sqlalchemy_session.

Try it:

    GET /posts/1
    GET /posts/2147483647  # 404

Keywords: N+1, MissingGreenlet, selectinload, joinedload, eager loading, relationship
Related: databases/sqlalchemy_session, databases/sqlalchemy_parallel
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import BaseModel
from sqlalchemy import ForeignKey, Index, make_url, orm, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NEWEST = 10  # comments in a response
LIMITS = {"timeout": 5, "command_timeout": 5}  # seconds: to connect, for a statement
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"
PostId = Annotated[int, Path(ge=1, le=2**31 - 1)]  # the ids that fit the column


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(primary_key=True, sort_order=-1)  # first


class Author(Base):
    __tablename__ = "blog_authors"
    name: Mapped[str]


class Post(Base):
    __tablename__ = "blog_posts"
    author_id: Mapped[int] = mapped_column(ForeignKey(Author.id))
    author: Mapped[Author] = relationship(lazy="raise")
    title: Mapped[str]


class Comment(Base):
    __tablename__ = "blog_comments"
    __table_args__ = (Index("blog_newest", "post_id", "id"),)  # finds the newest
    post_id: Mapped[int] = mapped_column(ForeignKey(Post.id))
    author_id: Mapped[int] = mapped_column(ForeignKey(Author.id))
    author: Mapped[Author] = relationship(lazy="raise")
    text: Mapped[str]


class PublicComment(BaseModel):
    author: str
    text: str


class PublicPost(BaseModel):
    author: str
    title: str
    newest: list[PublicComment]


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
            await connection.execute(text(ROWS))  # demo
        yield {"sessions": async_sessionmaker(engine)}
    finally:
        await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/posts/{post_id}")
async def get_post(request: Request, post_id: PostId) -> PublicPost:
    sessions: async_sessionmaker[AsyncSession] = request.state.sessions
    newest = select(Comment).filter_by(post_id=post_id).order_by(Comment.id.desc())
    newest = newest.limit(NEWEST).options(orm.joinedload(Comment.author))
    async with sessions() as session:
        post = await session.get(Post, post_id, options=[orm.joinedload(Post.author)])
        if post is None:
            raise HTTPException(404, "No such post")
        comments = await session.scalars(newest)
    return PublicPost(
        author=post.author.name,
        title=post.title,
        newest=[PublicComment(author=c.author.name, text=c.text) for c in comments],
    )


# --- evidence ---
ROWS = """
    WITH author AS (INSERT INTO blog_authors VALUES (1, 'Ada') ON CONFLICT DO NOTHING),
    posts AS (INSERT INTO blog_posts VALUES (1, 1, 'On loops'), (2, 1, 'On tasks')
        ON CONFLICT DO NOTHING)
    INSERT INTO blog_comments SELECT n, 1 + n / 25, 1, 'Good'
        FROM generate_series(1, 25) AS n ON CONFLICT DO NOTHING
"""


def main() -> None:
    from fastapi.testclient import TestClient
    from sqlalchemy import event

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    sent: list[object] = []
    with TestClient(app) as client:
        engine = client.app_state["sessions"].kw["bind"].sync_engine
        event.listen(engine, "before_cursor_execute", lambda *a: sent.append(a))
        for post in ("/posts/2", "/posts/1"):
            sent.clear()
            comments = client.get(post).json()["newest"]
            print(f"comments: {len(comments)}, statements: {len(sent)}")
            # > comments: 1, statements: 2
            # > comments: 10, statements: 2


if __name__ == "__main__":
    main()
