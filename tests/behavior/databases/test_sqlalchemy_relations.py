"""databases/sqlalchemy_relations: two statements, whatever the number of comments."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import ForeignKey, event, make_url, select
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    lazyload,
    mapped_column,
    relationship,
    selectinload,
)

from recipes.databases import sqlalchemy_relations
from recipes.databases.sqlalchemy_relations import NEWEST, NO_URL, Comment
from tests.behavior.databases.postgres import (
    OTHERS,
    WAITING,
    database,
    execute,
    shared_servers,
    until,
)
from tests.conftest import Serve
from tests.harness.server import Server, run_script

COUNTED = "tests.behavior.databases.counted_sqlalchemy_relations"
FRESH = f"""
    SELECT pg_terminate_backend(pid, 20000) {OTHERS} AND state LIKE 'idle in%';
    TRUNCATE blog_authors, blog_posts, blog_comments
"""
POST = """
    INSERT INTO blog_authors (id, name) VALUES (101, 'Grace');
    INSERT INTO blog_posts (id, author_id, title) VALUES (101, 101, 'On moths')
"""
MORE = """
    INSERT INTO blog_authors (id, name)
        SELECT n, 'Author ' || n FROM generate_series(102, 150) AS n;
    INSERT INTO blog_posts (id, author_id, title) VALUES (102, 102, 'On bugs');
    INSERT INTO blog_comments (id, post_id, author_id, text)
        SELECT n, 101, n, 'Number ' || n FROM generate_series(101, 150) AS n;
    INSERT INTO blog_comments (id, post_id, author_id, text)
        VALUES (151, 102, 101, 'Number 151')
"""
INDEXES = """
    SELECT count(*) FROM pg_indexes
    WHERE tablename = 'blog_comments' AND indexdef LIKE '%(post_id, id)'
"""


@pytest.fixture(scope="module")
def shared(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("sqlalchemy_relations")
    targets = f"{COUNTED}:recipe", f"{COUNTED}:naive"
    with shared_servers(postgres_url, folder, "SELECT", *targets) as servers:
        yield servers


def fresh(server: Server) -> Server:
    """`server` with empty tables, free of what a request has left behind."""
    asyncio.run(execute(server.options.env["DATABASE_URL"], FRESH))
    return server


@pytest.fixture
def recipe(shared: list[Server]) -> Server:
    return fresh(shared[0])


@pytest.fixture
def naive(shared: list[Server]) -> Server:
    return fresh(shared[1])


def alone(server: Server) -> httpx2.AsyncClient:
    """A client with a connection for each request: uvicorn closes it after a 500."""
    return server.client(headers={"Connection": "close"})


@pytest.mark.defect("D111", "D112")
async def test_a_post_has_its_own_author_and_a_missing_one_is_404(
    recipe: Server, naive: Server
) -> None:
    async def heard(server: Server) -> list[tuple[int, object]]:
        """A post that is missing, and one of two posts."""
        async with database(server) as connection, alone(server) as client:
            await connection.execute(POST)
            missing = await client.get("/posts/999")
            await connection.execute(MORE)
            answers = [missing, await client.get("/posts/101")]
        return [
            (one.status_code, one.is_success and one.json()["author"])
            for one in answers
        ]

    ours, theirs = await asyncio.gather(heard(recipe), heard(naive))
    assert ours[0][0] == 404
    assert ours[1] == (200, "Grace")
    assert theirs[0] == (200, {"id": 101, "name": "Grace"})  # of another post
    assert theirs[1] == (500, False)
    error = "Multiple rows were found when exactly one was required"
    await asyncio.to_thread(naive.wait_for_log, error)


@pytest.mark.defect("D110")
async def test_requests_at_the_same_time_are_all_answered(
    recipe: Server, naive: Server
) -> None:
    """More requests than the pool keeps connections, so that one needs a new one."""

    async def heard(server: Server) -> list[int]:
        async with database(server) as connection, alone(server) as client:
            await connection.execute(POST)
            async with connection.transaction():
                await connection.execute("LOCK TABLE blog_posts")
                tasks = [
                    asyncio.create_task(client.get("/posts/101")) for _ in "12345678"
                ]
                if server is recipe:
                    await until(connection, WAITING, len(tasks))
                else:  # one fails while the others wait
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return [one.status_code for one in await asyncio.gather(*tasks)]

    assert await heard(recipe) == [200] * 8
    assert 500 in await heard(naive)
    error = "This session is provisioning a new connection"
    await asyncio.to_thread(naive.wait_for_log, error)


async def test_neither_statements_nor_rows_grow_with_the_comments(
    recipe: Server, naive: Server
) -> None:
    async def heard(server: Server, path: str) -> tuple[list[int], Any]:
        """The numbers of statements for two posts, and the comments of the first."""
        async with database(server) as connection, alone(server) as client:
            await connection.execute(POST + ";" + MORE)
            counts: list[int] = []
            for post_id in 102, 101:
                await client.get("/statements")
                answer = await client.get(path.format(post_id))
                counts.append((await client.get("/statements")).json())
            return counts, answer.json()

    statements, post = await heard(recipe, "/posts/{}")
    assert statements == [2, 2]
    assert post["newest"] == [
        {"author": f"Author {150 - n}", "text": f"Number {150 - n}"}
        for n in range(NEWEST)
    ]
    statements, comments = await heard(naive, "/posts/{}/comments")
    assert statements == [2, 51]
    assert len(comments) == 50
    for server, indexes in (recipe, 1), (naive, 0):
        async with database(server) as connection:
            assert await connection.fetchval(INDEXES) == indexes
    async with alone(recipe) as client:
        for number in (0, -1, 2**31, 2**63, "x", "1.5", "9" * 5000, "%00"):
            assert (await client.get(f"/posts/{number}")).status_code == 422
        assert (await client.get(f"/posts/{2**31 - 1}")).status_code == 404


async def test_what_was_not_asked_for_raises(recipe: Server) -> None:
    url = make_url(recipe.options.env["DATABASE_URL"])
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    message = "'Comment.author' is not available due to lazy='raise'"
    async with database(recipe) as connection:
        await connection.execute(POST + ";" + MORE)
    async with AsyncSession(engine) as session:
        comment = await session.scalar(select(Comment).limit(1))
        assert comment
        with pytest.raises(InvalidRequestError, match=message):
            assert comment.author
        usual = select(Comment).limit(1).options(lazyload(Comment.author))
        comment = await session.scalar(usual.execution_options(populate_existing=True))
        assert comment
        with pytest.raises(MissingGreenlet):
            assert comment.author
    await engine.dispose()


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(primary_key=True)


class Writer(Base):
    __tablename__ = "blog_authors"
    name: Mapped[str]
    comments: Mapped[list["Remark"]] = relationship(lazy="raise")


class Remark(Base):
    __tablename__ = "blog_comments"
    author_id: Mapped[int] = mapped_column(ForeignKey(Writer.id))


async def test_selectinload_is_one_more_statement_for_any_number_of_rows(
    recipe: Server,
) -> None:
    url = make_url(recipe.options.env["DATABASE_URL"])
    engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
    sent: list[object] = []
    async with database(recipe) as connection:
        await connection.execute(POST + ";" + MORE)
    async with AsyncSession(engine) as session:
        event.listen(
            engine.sync_engine, "before_cursor_execute", lambda *a: sent.append(a)
        )
        loaded = select(Writer).options(selectinload(Writer.comments))
        writers = (await session.scalars(loaded)).all()
        assert (len(writers), sum(len(one.comments) for one in writers)) == (50, 51)
        assert len(sent) == 2
    await engine.dispose()


def test_it_starts_again_on_the_same_database(recipe: Server, serve: Serve) -> None:
    server = serve(f"{COUNTED}:recipe", env=recipe.options.env)
    assert httpx2.get(f"{server.url}/posts/1").is_success


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(sqlalchemy_relations.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve("recipes.databases.sqlalchemy_relations", env=no_url)
