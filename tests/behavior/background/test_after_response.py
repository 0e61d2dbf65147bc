"""background/after_response: a task that fails or hangs harms only itself."""

import asyncio
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import httpx2
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Response
from fastapi.testclient import TestClient
from starlette.background import BackgroundTask

from recipes.background.after_response import SLOTS
from tests.conftest import Serve
from tests.harness.server import Server

Start = Callable[..., Server]


@pytest.fixture
def start(serve: Serve) -> Start:
    """Serves a form whose mail task does what the note says."""

    def start(form: Literal["recipe", "naive"], limit: float = 5, **how: Any) -> Server:
        target = f"tests.behavior.background.obeying_after_response:{form}"
        strict = how.pop("strict", form == "recipe")
        return serve(target, env={"TIME_LIMIT": str(limit)}, strict=strict, **how)

    return start


def share(server: Server, note: str, email: str = "ada@example.com") -> httpx2.Response:
    fields = {"email": email, "note": note}
    if server.options.target.endswith("naive"):
        return httpx2.post(f"{server.url}/shares", params=fields)
    return httpx2.post(f"{server.url}/shares", json=fields)


def outcomes(server: Server) -> object:
    return httpx2.get(f"{server.url}/outcomes").json()


@pytest.mark.defect("D23", "D27")
def test_a_task_that_fails_leaves_a_trace_and_the_others_alone(start: Start) -> None:
    recipe, naive = start("recipe"), start("naive")
    ref = share(recipe, "fail now").json()["ref"]
    log = recipe.wait_for_log("share counted")
    assert f"{ref} send_mail: failed: 'Traceback" in recipe.wait_for_log("send_mail")
    assert outcomes(recipe) == {"count_share: done": 1, "send_mail: failed": 1}
    assert "Exception in ASGI application" not in log

    assert share(naive, "fail now").status_code == 200
    naive.wait_for_log("Exception in ASGI application")
    naive.stop()
    assert "share counted" not in naive.log


@pytest.mark.defect("D24")
def test_a_task_that_hangs_is_lost_alone_and_a_stop_goes_on(start: Start) -> None:
    recipe = start("recipe", limit=0.2, timeout_graceful_shutdown=None)
    naive = start("naive", timeout_graceful_shutdown=1)
    for server in (recipe, naive):
        share(server, "hang")
        server.wait_for_log("mail starts")
        server.terminate()
        server.wait()
    assert "share counted" in recipe.log
    assert "TimeoutError" in recipe.log
    assert "Application shutdown complete" in recipe.log
    assert "Cancel 1 running task(s)" in naive.log
    assert "share counted" not in naive.log


@pytest.mark.defect("D24")
def test_a_task_in_flight_at_sigterm_is_finished(start: Start) -> None:
    recipe = start("recipe", limit=60, timeout_graceful_shutdown=None)
    share(recipe, "wait")
    recipe.wait_for_log("mail starts")
    recipe.terminate()
    recipe.wait_for_log("Waiting for background tasks to complete")
    recipe.signal(signal.SIGUSR1)  # the mail may go on
    recipe.wait()
    assert recipe.log.index("mail sent") < recipe.log.index("shutdown complete")


@pytest.mark.defect("D24")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_task_that_outlasts_the_grace_is_named_in_the_log(
    start: Start, loop: str
) -> None:
    how = {"strict": False, "timeout_graceful_shutdown": 1, "loop": loop}
    recipe = start("recipe", limit=60, **how)
    ref = share(recipe, "hang").json()["ref"]
    recipe.wait_for_log("share counted")
    recipe.terminate()
    recipe.wait()
    assert f"{ref} send_mail: lost, cancelled" in recipe.log


def test_a_killed_process_loses_its_tasks_without_a_trace(start: Start) -> None:
    recipe = start("recipe")
    ref = share(recipe, "hang").json()["ref"]
    recipe.wait_for_log("mail starts")
    recipe.kill()
    assert ref not in recipe.log


@pytest.mark.defect("D25")
def test_what_is_private_is_in_no_log_and_an_address_is_an_address(
    start: Start,
) -> None:
    recipe, naive = start("recipe"), start("naive")
    for server in (recipe, naive):
        share(server, "my secret")
        server.wait_for_log("mail sent")
    assert "secret" not in recipe.log
    assert "secret" in naive.log
    for email in ("not-an-email", "a@example.com\nBcc: b@example.com", "", "a@b@c"):
        assert share(recipe, "", email).status_code == 422
        assert share(naive, "", email).status_code == 200
    assert share(recipe, "x" * 1001).status_code == 422
    assert share(recipe, "x" * 70_000).status_code == 413


@pytest.mark.defect("D26")
def test_tasks_run_side_by_side(start: Start) -> None:
    """The mail waits until the share is counted."""
    recipe, naive = start("recipe"), start("naive", timeout_graceful_shutdown=1)
    share(recipe, "meet")
    recipe.wait_for_log("mail sent")
    share(naive, "meet")
    naive.wait_for_log("mail starts")
    naive.stop()
    assert "share counted" not in naive.log


@pytest.mark.defect("D28")
def test_no_line_of_the_log_can_be_forged(start: Start) -> None:
    recipe, naive = start("recipe"), start("naive")
    for newline in ("\n", "\r", "\r\n", "\x1b[2K\x1b[1G\n"):
        for server in (recipe, naive):
            share(server, f"fail {newline}FORGED")
    recipe.stop()
    naive.stop()
    assert forged(naive) == 4
    assert forged(recipe) == 0
    assert "\x1b" not in recipe.log


def forged(server: Server) -> int:
    return sum(line.startswith("FORGED") for line in server.log.splitlines())


def test_many_tasks_that_hang_harm_no_other_kind_and_not_for_good(start: Start) -> None:
    recipe = start("recipe", limit=0.5)
    wanted = {"count_share: done": 2 * SLOTS, "send_mail: failed": 2 * SLOTS}
    hang = {"email": "ada@example.com", "note": "hang"}
    with httpx2.Client(base_url=recipe.url) as client:
        for _ in range(2 * SLOTS):
            assert client.post("/shares", json=hang).status_code == 202
        while sum(client.get("/outcomes").json().values()) < 4 * SLOTS:
            pass
        assert client.get("/outcomes").json() == wanted
        client.post("/shares", json=hang | {"note": "fine"})
    recipe.wait_for_log("mail sent")


def test_a_client_that_leaves_does_not_stop_the_tasks(start: Start) -> None:
    recipe = start("recipe")
    body = b'{"email": "ada@example.com", "note": "wait"}'
    head = b"POST /shares HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", recipe.port)) as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    recipe.wait_for_log("mail starts")
    recipe.signal(signal.SIGUSR1)
    recipe.wait_for_log("mail sent")


def test_when_injected_tasks_do_not_start() -> None:
    app = FastAPI()
    ran: list[str] = []

    @app.get("/raises")
    def raises(tasks: BackgroundTasks) -> None:
        tasks.add_task(ran.append, "added")
        raise HTTPException(418)

    @app.get("/own")
    def own(tasks: BackgroundTasks) -> Response:
        tasks.add_task(ran.append, "added")
        return Response(background=BackgroundTask(ran.append, "own"))

    with TestClient(app) as client:
        client.get("/raises")
        client.get("/own")
    assert ran == ["own"]


def test_a_dependency_is_open_during_the_tasks_or_closed_before_them() -> None:
    app = FastAPI()
    seen: list[str] = []

    async def session() -> AsyncIterator[None]:
        yield
        seen.append("closed")

    @app.get("/request", dependencies=[Depends(session)])
    @app.get("/function", dependencies=[Depends(session, scope="function")])
    def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(seen.append, "task")

    with TestClient(app) as client:
        client.get("/request")
        client.get("/function")
    assert seen == ["task", "closed", "closed", "task"]


async def test_a_thread_runs_on_after_its_limit() -> None:
    goes_on, done = threading.Event(), threading.Event()

    def blocking() -> None:
        goes_on.wait(20)
        done.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.to_thread(blocking)
    assert not done.is_set()
    goes_on.set()
    assert done.wait(20)
