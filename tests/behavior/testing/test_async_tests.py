"""testing/async_tests: its tests fail when the app is broken, and none hangs."""

import asyncio
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from recipes._cookbook.catalogue import ROOT
from recipes.testing import async_tests
from tests.behavior.testing import naive_async_tests
from tests.harness.server import Server

RECIPE = ROOT / "recipes" / "testing" / "async_tests.py"
NAIVE = Path(naive_async_tests.__file__)
ALL = {
    "test_override_and_background_task",
    "test_stream",
    "test_websocket",
    "test_two_requests_at_once",
}

# What is broken in the app, and which tests must fail.
BROKEN = {
    "it does not start": ("    yield {", "    raise OSError\n    yield {", ALL),
    "no state": ('yield {"ordered"', 'yield {"disordered"', {*ALL} - {
        "test_stream", "test_websocket"}),
    "its own price": ("you owe {price}", "you owe 9.99", {
        "test_override_and_background_task"}),
    "no task": ("    tasks.add_task(", "    _ = (", {
        "test_override_and_background_task"}),
    "no cleanup": ('log.append("reader', 'log.count("reader', {"test_stream"}),
    "no event": ('yield "tick"', 'yield "tack"', {"test_stream"}),
    "it echoes bytes": ("websocket.send_text(await", "websocket.send_json(await", {
        "test_websocket"}),
    "it wakes nobody": ("ordered.set()", "ordered.clear()", {
        "test_two_requests_at_once"}),
}  # fmt: skip


def failing(pytester: pytest.Pytester, source: str, *options: str) -> set[str]:
    """Which of the tests in `source` do not pass."""
    path = pytester.makepyfile(async_tests=source)
    isolated = ["-p", "no:cacheprovider", "-p", "no:xdist"]
    run = pytester.inline_run(*isolated, *options, str(path))
    passed, _, failed = run.listoutcomes()
    assert passed or failed
    return {report.nodeid.rpartition("::")[2] for report in failed}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_app_fails_the_tests_that_should(
    fault: str, pytester: pytest.Pytester
) -> None:
    old, new, expected = BROKEN[fault]
    source = RECIPE.read_text("utf-8")
    assert source.count(old) == 1
    assert failing(pytester, source.replace(old, new)) == expected


def test_the_naive_tests_pass_although_the_app_cannot_start(
    pytester: pytest.Pytester,
) -> None:
    assert failing(pytester, NAIVE.read_text(), "-k", "price") == set()
    with pytest.raises(RuntimeError, match="no database"):
        with TestClient(naive_async_tests.app):
            pytest.fail("it has started")


def test_the_naive_override_leaks(pytester: pytest.Pytester) -> None:
    assert failing(pytester, NAIVE.read_text(), "-k", "test_price") == {"test_price"}


def test_the_override_of_the_recipe_does_not(pytester: pytest.Pytester) -> None:
    later = (
        "\ndef test_later(client: TestClient) -> None:\n"
        "    client.post('/orders')\n"
        "    assert 'mailed: you owe 9.99' in client.app_state['log']\n"
    )
    assert failing(pytester, RECIPE.read_text("utf-8") + later) == set()


async def test_the_naive_stream_never_returns_and_that_of_the_recipe_does() -> None:
    test = asyncio.create_task(naive_async_tests.test_ticks())
    while naive_async_tests.ticks_sent < 1000:
        await asyncio.sleep(0)
    assert not test.done()
    test.cancel()
    await asyncio.gather(test, return_exceptions=True)
    with TestClient(async_tests.app) as client:
        async_tests.test_stream(client)


def test_without_a_lifespan_the_state_is_missing() -> None:
    told = "'State' object has no attribute 'ordered'"
    with pytest.raises(AttributeError, match=told):
        TestClient(async_tests.app).post("/orders")


async def test_its_app_runs_on_a_server(recipe: Server) -> None:
    async with recipe.client() as client:
        waiting = asyncio.create_task(client.get("/ordered"))
        assert (await client.post("/orders")).status_code == 201
        assert (await waiting).json() is True
        async with client.stream("GET", "/ticks") as response:
            assert await anext(response.aiter_lines()) == 'data: "tick"'


async def test_async_clients_wait_for_background_tasks() -> None:
    state: dict[str, object] = {}

    async def with_state(scope, receive, send) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        await async_tests.app(scope | {"state": dict(state)}, receive, send)

    http = httpx2.AsyncClient(
        transport=httpx2.ASGITransport(with_state), base_url="http://app"
    )
    async with async_tests.lifespan(async_tests.app) as found, http:
        state.update(found)
        await http.post("/orders")
        assert list(found["log"]) == ["mailed: you owe 9.99"]  # type: ignore[call-overload]
