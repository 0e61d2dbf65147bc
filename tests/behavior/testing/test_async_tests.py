"""testing/async_tests: its tests fail when the app is broken, and none hangs."""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterable
from pathlib import Path

import httpx2
import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.sse import EventSourceResponse
from fastapi.testclient import TestClient

from recipes._cookbook.catalogue import ROOT
from recipes.testing import async_tests
from tests.behavior.testing import naive_async_tests
from tests.conftest import Serve
from tests.harness.server import run_script

RECIPE = ROOT / "recipes" / "testing" / "async_tests.py"
NAIVE = Path(naive_async_tests.__file__)
IN_THE_LOOP = "test_in_the_event_loop_of_the_app[asyncio]"
ALL = {"test_stream", "test_websocket", IN_THE_LOOP, "test_disconnect"}

# What is broken in the app, and which tests must fail.
BROKEN = {
    "it does not start": ("    yield {", "    raise OSError\n    yield {", ALL),
    "no state": ('yield {"log"', 'yield {"logs"', {IN_THE_LOOP, "test_disconnect"}),
    "no commit": ('log.put("COMMIT")', 'log.put("ROLLBACK")', {
        IN_THE_LOOP, "test_disconnect"}),
    "no cleanup": ("request.state.log.put(", "str(", {IN_THE_LOOP, "test_disconnect"}),
    "no row": ("    return row", "    return row[1:]", {IN_THE_LOOP}),
    "no event": ("yield row", "yield row[1:]", {"test_stream", "test_disconnect"}),
    "it echoes bytes": ("websocket.send_text(await", "websocket.send_json(await", {
        "test_websocket"}),
}  # fmt: skip


def failing(pytester: pytest.Pytester, source: str, *options: str) -> set[str]:
    """Which of the tests in `source` do not pass."""
    path = pytester.makepyfile(async_tests=source.replace("timeout=5", "timeout=0.1"))
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
        "    assert client.get('/row').json() == 'a row'\n"
    )
    assert failing(pytester, RECIPE.read_text("utf-8") + later) == set()


async def test_the_naive_stream_never_returns_and_that_of_the_recipe_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test = asyncio.create_task(naive_async_tests.test_ticks())
    while naive_async_tests.ticks_sent < 1000:
        await asyncio.sleep(0)
    assert not test.done()
    test.cancel()
    await asyncio.gather(test, return_exceptions=True)
    with TestClient(async_tests.app) as client:
        async_tests.test_stream(client, monkeypatch)


def test_without_a_lifespan_the_state_is_missing() -> None:
    told = "'State' object has no attribute 'log'"
    with pytest.raises(AttributeError, match=told):
        TestClient(async_tests.app).get("/row")


async def test_a_server_commits_and_works_on_after_a_disconnect_test_client_does_not(
    serve: Serve,
) -> None:
    with TestClient(noted_app) as client, client.stream("GET", "/rows") as response:
        assert next(response.iter_lines()) == 'data: "a row"'
    assert client.app_state["log"].empty()
    server = serve("tests.behavior.testing.test_async_tests:noted_app")
    async with server.client() as http:
        async with http.stream("GET", "/rows") as events:
            assert await anext(events.aiter_lines()) == 'data: "a row"'
        noted = {(await http.get("/noted")).json() for _ in range(2)}
    assert noted == {"COMMIT", "in the background"}


noted_app = FastAPI(lifespan=async_tests.lifespan)


@noted_app.get("/rows", response_class=EventSourceResponse)
async def rows(
    request: Request, row: async_tests.Row, tasks: BackgroundTasks
) -> AsyncIterable[str]:
    tasks.add_task(request.state.log.put, "in the background")
    async for each in async_tests.stream_rows(row):
        yield each


@noted_app.get("/noted")
def noted(request: Request) -> str:
    return str(request.state.log.get(timeout=20))


def test_sigterm_reaches_a_uvicorn_that_was_given_a_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, number = listener.getsockname()[1], listener.fileno()
        command = [sys.executable, "-m", "uvicorn", "recipes.testing.async_tests:app"]
        process = subprocess.Popen(
            [*command, f"--fd={number}"], pass_fds=[number], cwd=ROOT
        )
    with process:
        try:
            answer = httpx2.get(f"http://127.0.0.1:{port}/row", timeout=20)
            assert answer.json() == "a row"
            process.terminate()
            assert process.wait(20) == -signal.SIGTERM
        finally:
            process.kill()


def test_an_async_test_needs_its_mark(pytester: pytest.Pytester) -> None:
    lines = RECIPE.read_text("utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("@pytest.mark.")]
    assert len(kept) == len(lines) - 2
    path = pytester.makepyfile(async_tests="\n".join(kept))
    run = pytester.runpytest_inprocess("-k", "loop", "-p", "no:xdist", path)
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines(["*async def functions are not natively supported.*"])


def test_the_script_leaves_no_files(tmp_path: Path) -> None:
    script = Path(shutil.copy(RECIPE, tmp_path))
    quicker = "-p no:schemathesis -p no:hypothesispytest"
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTEST_ADDOPTS": quicker}
    (tmp_path / "logs").mkdir()
    status, printed, logged = run_script(script, tmp_path / "logs", env)
    assert (status, printed) == (0, "4 passed\n"), logged
    assert {path.name for path in tmp_path.iterdir()} == {"async_tests.py", "logs"}
