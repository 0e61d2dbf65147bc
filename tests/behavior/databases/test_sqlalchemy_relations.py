"""databases/sqlalchemy_relations: three statements, whatever the number of comments."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import make_url, select
from sqlalchemy.exc import InvalidRequestError, MissingGreenlet
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import lazyload

from recipes.databases import sqlalchemy_relations
from recipes.databases.sqlalchemy_relations import NEWEST, NO_URL, Comment
from tests.behavior.databases.postgres import WAITING, database, until
from tests.conftest import Serve
from tests.harness.server import Server, run_script

COUNTED = "tests.behavior.databases.counted_sqlalchemy_relations"
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


@pytest.fixture
def recipe(serve: Serve, new_database: Callable[[], str]) -> Server:
    return serve(f"{COUNTED}:recipe", env={"DATABASE_URL": new_database()})


@pytest.fixture
def naive(serve: Serve, new_database: Callable[[], str]) -> Server:
    env = {"DATABASE_URL": new_database()}
    return serve(f"{COUNTED}:naive", env=env, strict=False)


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
    """The pool has one connection. While it is in use, a request needs a new one."""

    async def heard(server: Server) -> list[int]:
        waiting, early = (1, 1) if server is naive else (2, 0)
        async with database(server) as connection, alone(server) as client:
            await connection.execute(POST)
            async with connection.transaction():
                await connection.execute("LOCK TABLE blog_posts")
                tasks = [asyncio.create_task(client.get("/posts/101")) for _ in "12"]
                await until(connection, WAITING, waiting)
                if early:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                assert sum(task.done() for task in tasks) == early
            return sorted(one.status_code for one in await asyncio.gather(*tasks))

    assert await heard(recipe) == [200, 200]
    assert await heard(naive) == [200, 500]
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
    assert statements == [3, 3]
    assert [comment["text"] for comment in post["newest"]] == [
        f"Number {150 - n}" for n in range(NEWEST)
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


def test_it_starts_twice_on_the_same_database(
    serve: Serve, new_database: Callable[[], str]
) -> None:
    env = {"DATABASE_URL": new_database()}
    for _ in "12":
        server = serve(f"{COUNTED}:recipe", env=env)
        assert httpx2.get(f"{server.url}/posts/1").is_success


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(sqlalchemy_relations.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve("recipes.databases.sqlalchemy_relations", env=no_url)
