"""background/durable_outbox: what was accepted is sent, whoever dies meanwhile."""

import asyncio
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.background import durable_outbox
from recipes.background.durable_outbox import NO_URL
from tests.behavior.databases.postgres import Proxy, database, disconnect_others, until
from tests.conftest import Serve
from tests.harness.server import Server, run_script

MODULE = "tests.behavior.background.obeying_durable_outbox"
SENT = "SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL"
Start = Callable[..., Awaitable[Server]]


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


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    return new_database()


async def order(server: Server, item: str = "a book") -> int:
    body = {"email": "ada@example.com", "item": item}
    async with server.client(headers={"Connection": "close"}) as client:
        return (await client.post("/orders", json=body)).status_code


async def wait_for_log(server: Server, text: str) -> str:
    return await asyncio.to_thread(server.wait_for_log, text)


@pytest.mark.defect("D24")
async def test_what_a_crash_interrupts_is_sent_by_the_next_process(
    start: Start, url: str, new_database: Callable[[], str]
) -> None:
    others = await asyncio.to_thread(new_database)
    for form, where in ("recipe", url), ("naive", others):
        first = await start(form, where, 1)
        assert await order(first, "wait") == 202
        await wait_for_log(first, "<1> starts")
        await asyncio.to_thread(first.kill)
        second = await start(form, where, 1)
        second.signal(signal.SIGUSR1)
        assert await order(second) == 202
        await wait_for_log(second, "<2> sent")
        if form == "recipe":
            await wait_for_log(second, "<1> sent")
            async with database(second) as connection:
                await until(connection, SENT, 2)
        else:
            assert "<1>" not in second.log


@pytest.mark.defect("D24")
async def test_a_deploy_finishes_what_is_being_sent_and_sends_nothing_twice(
    start: Start, url: str, new_database: Callable[[], str]
) -> None:
    naive = await start(
        "naive", await asyncio.to_thread(new_database), timeout_graceful_shutdown=0.1
    )
    assert await order(naive, "wait") == 202
    await wait_for_log(naive, "<1> starts")
    naive.terminate()
    await asyncio.to_thread(naive.wait)
    assert "<1> sent" not in naive.log

    old = await start("recipe", url)
    assert await order(old, "wait") == 202
    await wait_for_log(old, "<1> starts")
    new = await start("recipe", url)  # both run for a while
    assert await order(new) == 202
    old.terminate()
    await wait_for_log(old, "Waiting for application shutdown")
    old.signal(signal.SIGUSR1)
    await asyncio.to_thread(old.wait)
    assert "<1> sent" in old.log
    async with database(new) as connection:
        await until(connection, SENT, 2)
    assert (old.log + new.log).count("starts") == 2


@pytest.mark.defect("D23")
async def test_an_error_is_tried_again_with_the_same_key_and_in_the_end_is_seen(
    start: Start, url: str, new_database: Callable[[], str]
) -> None:
    naive = await start("naive", await asyncio.to_thread(new_database))
    assert await order(naive, "fail twice") == 202
    await wait_for_log(naive, "ConnectionError")
    assert await order(naive) == 202
    await wait_for_log(naive, "<2> sent")
    assert naive.log.count("<1> starts") == 1

    recipe = await start("recipe", url, 0.1)
    assert await order(recipe, "fail twice") == 202
    await wait_for_log(recipe, "<1> sent")
    assert await order(recipe, "fail") == 202
    await wait_for_log(recipe, "<2> starts, attempt 3")
    assert await order(recipe) == 202
    await wait_for_log(recipe, "<3> sent")
    async with database(recipe) as connection:
        await until(connection, "SELECT count(error) FROM outbox WHERE id = 2")
        await connection.execute("UPDATE outbox SET next_attempt = now()")
        assert await order(recipe) == 202
        await wait_for_log(recipe, "<4> sent")
        await until(connection, SENT, 3)
        parked = "SELECT * FROM outbox WHERE sent_at IS NULL AND attempts >= 3"
        (row,) = await connection.fetch(parked)
    assert row["id"] == 2
    assert "no route to ada@example.com" in row["error"]
    assert "attempt 4" not in recipe.log


async def test_of_many_workers_one_sends_a_row(start: Start, url: str) -> None:
    servers = [await start("recipe", url), await start("recipe", url)]
    statuses = await asyncio.gather(*(order(servers[n % 2]) for n in range(30)))
    assert statuses == [202] * 30
    async with database(servers[0]) as connection:
        await until(connection, SENT, 30)
    sent = re.findall("<([0-9]+)> starts", servers[0].log + servers[1].log)
    assert Counter(sent) == {str(number): 1 for number in range(1, 31)}


async def test_an_order_without_its_row_is_not_accepted(start: Start, url: str) -> None:
    recipe = await start("recipe", url)
    async with database(recipe) as connection:
        await connection.execute("ALTER TABLE outbox ADD CHECK (email = 'nobody')")
        assert await order(recipe) == 500
        assert await connection.fetchval("SELECT count(*) FROM outbox_orders") == 0


async def test_a_receiver_that_hangs_holds_up_neither_the_others_nor_a_stop(
    start: Start, url: str
) -> None:
    recipe = await start("recipe", url, 60, 0.3)
    assert await order(recipe, "hang") == 202
    assert await order(recipe) == 202
    await wait_for_log(recipe, "<2> sent")
    await wait_for_log(recipe, "outbox 1: TimeoutError()")
    assert await order(recipe, "hang") == 202
    await wait_for_log(recipe, "<3> starts")
    recipe.terminate()
    await asyncio.to_thread(recipe.wait)
    assert "outbox 3: TimeoutError()" in recipe.log


async def test_the_workers_survive_a_restart_of_the_database(
    start: Start, url: str
) -> None:
    async with Proxy(url) as proxy:
        recipe = await start("recipe", proxy.url)
        async with database(recipe) as connection:
            await disconnect_others(connection)
        assert await order(recipe) == 202
        await wait_for_log(recipe, "<1> sent")
        await proxy.cut()
        await wait_for_log(recipe, "outbox: ConnectionRefusedError")
        await proxy.open(proxy.port)
        assert await order(recipe) == 202
        await wait_for_log(recipe, "<2> sent")
        await asyncio.to_thread(recipe.stop)


async def test_a_database_that_hangs_does_not_hold_up_a_stop(
    start: Start, url: str
) -> None:
    async with Proxy(url) as proxy:
        recipe = await start("recipe", proxy.url, timeout_graceful_shutdown=1)
        proxy.freeze()
        recipe.terminate()
        await asyncio.to_thread(recipe.wait)


async def test_bad_input_is_refused(start: Start, url: str) -> None:
    recipe = await start("recipe", url)
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
