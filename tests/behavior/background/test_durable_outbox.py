"""background/durable_outbox: what was accepted is sent, whoever dies meanwhile."""

import asyncio
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recipes.background import durable_outbox
from recipes.background.durable_outbox import NO_URL, SCHEMA
from tests.behavior.databases.postgres import (
    OTHERS,
    Proxy,
    database,
    disconnect_others,
    execute,
    shared_servers,
    until,
)
from tests.conftest import Serve
from tests.harness.server import Server, run_script

MODULE = "tests.behavior.background.obeying_durable_outbox"
ROWS = "SELECT count(*) FROM outbox"
FRESH = "TRUNCATE outbox, outbox_orders RESTART IDENTITY"
Start = Callable[..., Awaitable[Server]]


@pytest.fixture(scope="module")
def shared(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    """Recipe and naive form; a second attempt comes after a minute."""
    folder = tmp_path_factory.mktemp("durable_outbox")
    targets = f"{MODULE}:recipe", f"{MODULE}:naive"
    env = {"RETRY_SECONDS": "60", "SEND_SECONDS": "30"}
    with shared_servers(postgres_url, folder, SCHEMA, *targets, **env) as servers:
        yield servers


@pytest.fixture
def recipe(shared: list[Server]) -> Server:
    asyncio.run(execute(shared[0].options.env["DATABASE_URL"], FRESH))
    return shared[0]


@pytest.fixture
def naive(shared: list[Server]) -> Server:
    return shared[1]


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    """Of a database that the shared servers do not look at."""
    return new_database()


@pytest.fixture
def start(serve: Serve) -> Start:
    """Serves a form; its second attempt comes after `retry` seconds."""

    def start(
        form: str, url: str, retry: float = 60, limit: float = 30, **uvicorn: Any
    ) -> Server:
        env = {"DATABASE_URL": url}
        env |= {"RETRY_SECONDS": str(retry), "SEND_SECONDS": str(limit)}
        strict = form == "recipe" and not uvicorn
        return serve(f"{MODULE}:{form}", env=env, strict=strict, **uvicorn)

    async def in_thread(*options: Any, **uvicorn: Any) -> Server:
        return await asyncio.to_thread(lambda: start(*options, **uvicorn))

    return in_thread


async def order(server: Server, item: str = "a book") -> int:
    """The id of an order that was accepted."""
    body = {"email": "ada@example.com", "item": item}
    async with server.client(verify=False) as client:  # no TLS
        response = await client.post("/orders", json=body)
    assert response.status_code == 202
    return int(response.json()["order_id"])


async def wait_for_log(server: Server, text: str) -> str:
    return await asyncio.to_thread(server.wait_for_log, text)


@pytest.mark.defect("D24")
async def test_what_a_crash_interrupts_is_sent_by_the_next_process(
    start: Start, url: str, naive: Server
) -> None:
    first = await start("recipe", url, 0.5)
    assert await order(first, "wait") == 1
    await wait_for_log(first, "<1> starts")
    await asyncio.to_thread(first.kill)
    second = await start("recipe", url, 0.5)
    second.signal(signal.SIGUSR1)
    await wait_for_log(second, "<1> sent")
    async with database(second) as connection:
        await until(connection, ROWS, 0)

    crashing = await start("naive", naive.options.env["DATABASE_URL"])
    lost = await order(crashing, "wait")
    await wait_for_log(crashing, f"<{lost}> starts")
    await asyncio.to_thread(crashing.kill)
    await wait_for_log(naive, f"<{await order(naive)}> sent")
    assert f"<{lost}>" not in naive.log


@pytest.mark.defect("D24")
async def test_a_deploy_finishes_what_is_being_sent_and_sends_nothing_twice(
    start: Start, url: str, naive: Server
) -> None:
    stopped = await start(
        "naive", naive.options.env["DATABASE_URL"], timeout_graceful_shutdown=0.1
    )
    lost = await order(stopped, "wait")
    await wait_for_log(stopped, f"<{lost}> starts")
    stopped.terminate()
    await asyncio.to_thread(stopped.wait)
    assert f"<{lost}> sent" not in stopped.log

    old = await start("recipe", url)
    assert await order(old, "wait") == 1
    await wait_for_log(old, "<1> starts")
    new = await start("recipe", url)  # both run for a while
    assert await order(new) == 2
    old.terminate()
    await wait_for_log(old, "Waiting for application shutdown")
    old.signal(signal.SIGUSR1)
    await asyncio.to_thread(old.wait)
    assert "<1> sent" in old.log
    async with database(new) as connection:
        await until(connection, ROWS, 0)
    assert (old.log + new.log).count("starts") == 2


@pytest.mark.defect("D23")
async def test_an_error_is_tried_again_with_the_same_key_and_in_the_end_is_seen(
    start: Start, url: str, naive: Server
) -> None:
    lost = await order(naive, "fail twice")
    await wait_for_log(naive, "ConnectionError")
    await wait_for_log(naive, f"<{await order(naive)}> sent")
    assert naive.log.count(f"<{lost}> starts") == 1

    recipe = await start("recipe", url, 0.1)
    assert await order(recipe, "fail twice") == 1
    await wait_for_log(recipe, "<1> sent")
    assert await order(recipe, "fail") == 2
    await wait_for_log(recipe, "<2> starts, attempt 3")
    assert await order(recipe) == 3
    await wait_for_log(recipe, "<3> sent")
    async with database(recipe) as connection:
        await until(connection, ROWS)
        stays = "SELECT id FROM outbox WHERE next_attempt = 'infinity'"
        assert await connection.fetchval(stays) == 2
        assert (
            r"outbox 2: ConnectionError('no route to ada@example.com \x00\ud800')"
            in (recipe.log)
        )
        assert "attempt 4" not in recipe.log
        again = "UPDATE outbox SET attempts = 0, next_attempt = now()"
        await connection.execute(again)
        await wait_for_log(recipe, "<2> starts, attempt 6")
        assert await connection.fetchval(ROWS) == 1


async def test_no_error_of_send_ends_the_workers(recipe: Server) -> None:
    """Also a cancellation that is not theirs; there are four of them."""
    for number in range(1, 6):
        assert await order(recipe, "cancelled") == number
    for number in range(1, 6):
        await wait_for_log(recipe, f"outbox {number}: CancelledError()")
    assert await order(recipe) == 6
    await wait_for_log(recipe, "<6> sent")


async def test_of_many_workers_one_sends_a_row(start: Start, url: str) -> None:
    servers = [await start("recipe", url), await start("recipe", url)]
    async with servers[0].client() as one, servers[1].client() as other:
        body = {"email": "ada@example.com", "item": "a book"}
        posts = [client.post("/orders", json=body) for client in [one, other] * 15]
        answers = await asyncio.gather(*posts)
    assert {answer.status_code for answer in answers} == {202}
    async with database(servers[0]) as connection:
        await until(connection, ROWS, 0)
    sent = re.findall("<([0-9]+)> starts", servers[0].log + servers[1].log)
    assert Counter(sent) == {str(number): 1 for number in range(1, 31)}


async def test_an_order_without_its_row_is_not_accepted(recipe: Server) -> None:
    async with database(recipe) as connection, recipe.client() as client:
        await connection.execute(
            "ALTER TABLE outbox ADD CHECK (email <> 'a@b.example')"
        )
        body = {"email": "a@b.example", "item": "a book"}
        assert (await client.post("/orders", json=body)).status_code == 500
        assert await connection.fetchval("SELECT count(*) FROM outbox_orders") == 0


async def test_a_receiver_that_hangs_holds_up_neither_the_others_nor_a_stop(
    start: Start, url: str
) -> None:
    server = await start("recipe", url, 60, 0.3)
    assert await order(server, "hang") == 1
    assert await order(server) == 2
    await wait_for_log(server, "<2> sent")
    await wait_for_log(server, "outbox 1: TimeoutError()")
    assert await order(server, "hang") == 3
    await wait_for_log(server, "<3> starts")
    server.terminate()
    await asyncio.to_thread(server.wait)
    assert "outbox 3: TimeoutError()" in server.log


async def test_the_workers_survive_a_restart_of_the_database_and_a_stop_while_it_hangs(
    start: Start, url: str
) -> None:
    async with Proxy(url) as proxy:
        server = await start("recipe", proxy.url)
        async with database(server) as connection:
            await disconnect_others(connection)
        assert await order(server) == 1
        await wait_for_log(server, "<1> sent")
        await proxy.cut()
        await wait_for_log(server, "outbox claim: ConnectionRefusedError")
        await proxy.open(proxy.port)
        assert await order(server) == 2
        await wait_for_log(server, "<2> sent")

        body = {"email": "ada@example.com", "item": "a book"}
        async with database(server) as connection, server.client() as client:
            while await connection.fetchval(f"SELECT count(*) {OTHERS}") < 6:
                posts = [client.post("/orders", json=body) for _ in range(12)]
                await asyncio.gather(*posts)
        proxy.freeze()  # more connections than workers: some are idle
        server.terminate()
        await asyncio.to_thread(server.wait)


async def test_bad_input_is_refused(recipe: Server) -> None:
    good = {"email": "ada@example.com", "item": "a book"}
    bad: list[object] = [{}, [], None, good | {"item": ""}, good | {"item": "a\0b"}]
    bad += [good | {"item": "x" * 1001}, good | {"email": "ada"}]
    async with recipe.client() as client:
        for body in bad:
            assert (await client.post("/orders", json=body)).status_code == 422
        big = good | {"item": "x" * 2**16}
        assert (await client.post("/orders", json=big)).status_code == 413


def test_without_a_url_one_line_says_what_to_set(serve: Serve, tmp_path: Path) -> None:
    no_url = {"DATABASE_URL": ""}
    path = Path(durable_outbox.__file__)
    assert run_script(path, tmp_path, no_url) == (1, "", f"{NO_URL}\n")
    with pytest.raises(RuntimeError, match=NO_URL):
        serve("recipes.background.durable_outbox", env=no_url)
