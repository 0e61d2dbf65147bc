"""background/after_response: a task that fails or hangs harms only itself."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Literal

import httpx2
import pytest
from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    Request,
    Response,
)
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from starlette.background import BackgroundTask

from recipes.background import after_response
from tests.conftest import Serve
from tests.harness.server import Server

SLOTS = 2  # of the served forms
GRACE = 0.1  # seconds: what is cancelled after it would never end
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
    request_id = share(recipe, "fail now").json()["request_id"]
    recipe.wait_for_log("share counted")
    log = recipe.wait_for_log("send_mail")
    assert f"{request_id} send_mail: failed: 'Traceback" in log
    assert outcomes(recipe) == {"count_share: done": 1, "send_mail: failed": 1}
    assert "Exception in ASGI application" not in log

    assert share(naive, "fail now").status_code == 200
    naive.wait_for_log("Exception in ASGI application")
    naive.stop()
    assert "share counted" not in naive.log


@pytest.mark.defect("D24")
def test_a_task_that_hangs_is_lost_alone_and_a_stop_goes_on(start: Start) -> None:
    recipe = start("recipe", limit=0.2, timeout_graceful_shutdown=None)
    naive = start("naive", timeout_graceful_shutdown=GRACE)
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
    how = {"strict": False, "timeout_graceful_shutdown": GRACE, "loop": loop}
    recipe = start("recipe", limit=60, **how)
    request_id = share(recipe, "hang").json()["request_id"]
    recipe.wait_for_log("share counted")
    recipe.terminate()
    recipe.wait()
    assert f"{request_id} send_mail: lost, cancelled" in recipe.log


def test_a_killed_process_loses_its_tasks_without_a_trace(start: Start) -> None:
    recipe = start("recipe")
    request_id = share(recipe, "hang").json()["request_id"]
    recipe.wait_for_log("mail starts")
    recipe.kill()
    assert request_id not in recipe.log


@pytest.mark.defect("D25", "D28")
def test_the_log_has_nothing_private_and_no_forged_line(start: Start) -> None:
    recipe, naive = start("recipe"), start("naive")
    for server in (recipe, naive):
        share(server, "my secret")
        server.wait_for_log("mail sent")
    assert "secret" not in recipe.log
    assert "secret" in naive.log
    for newline in ("\n", "\r", "\r\n", "\x1b[2K\x1b[1G\n"):
        for server in (recipe, naive):
            share(server, f"fail {newline}FORGED")
    for email in ("not-an-email", "a@example.com\nBcc: b@example.com", "", "a@b@c"):
        assert share(recipe, "", email).status_code == 422
        assert share(naive, "", email).status_code == 200
    assert share(recipe, "x" * 1001).status_code == 422
    assert share(recipe, "x" * 70_000).status_code == 413
    recipe.stop()
    naive.stop()
    assert forged(naive) == 4
    assert forged(recipe) == 0
    assert "\x1b" not in recipe.log


def forged(server: Server) -> int:
    return sum(line.startswith("FORGED") for line in server.log.splitlines())


@pytest.mark.defect("D26")
def test_tasks_run_concurrently(start: Start) -> None:
    """The mail waits until the share is counted."""
    recipe, naive = start("recipe"), start("naive", timeout_graceful_shutdown=GRACE)
    share(recipe, "meet")
    recipe.wait_for_log("mail sent")
    share(naive, "meet")
    naive.wait_for_log("mail starts")
    naive.stop()
    assert "share counted" not in naive.log


def test_slots_bound_one_kind_of_task_and_no_other(start: Start) -> None:
    recipe = start("recipe", limit=60)
    for _ in range(2 * SLOTS):
        share(recipe, "wait")
    wait_for_outcomes(recipe, {"count_share: done": 2 * SLOTS})
    assert recipe.log.count("mail starts") == SLOTS
    recipe.signal(signal.SIGUSR1)  # the mails may go on
    done = {"count_share: done": 2 * SLOTS, "send_mail: done": 2 * SLOTS}
    wait_for_outcomes(recipe, done)


def test_the_wait_for_a_slot_has_a_limit_and_slots_come_back(start: Start) -> None:
    recipe = start("recipe", limit=0.2)
    for note in ("resist", "hang"):  # who resists its limit keeps its slot
        for _ in range(SLOTS):
            share(recipe, note)
    wanted = {"count_share: done": 2 * SLOTS, "send_mail: failed": SLOTS}
    wait_for_outcomes(recipe, wanted)
    assert recipe.log.count("mail starts") == SLOTS
    recipe.signal(signal.SIGUSR1)
    wait_for_outcomes(recipe, wanted | {"send_mail: done": SLOTS})
    for _ in range(SLOTS):
        share(recipe, "hang")
    wanted = {"count_share: done": 3 * SLOTS, "send_mail: failed": 2 * SLOTS}
    wait_for_outcomes(recipe, wanted | {"send_mail: done": SLOTS})
    assert share(recipe, "fine").is_success
    wanted["count_share: done"] += 1
    wait_for_outcomes(recipe, wanted | {"send_mail: done": SLOTS + 1})


def wait_for_outcomes(server: Server, wanted: dict[str, int]) -> None:
    for _ in range(1000):
        if (found := outcomes(server)) == wanted:
            return
        time.sleep(0.02)
    pytest.fail(f"{found} is not {wanted}")


def test_a_client_that_leaves_does_not_stop_the_tasks(start: Start) -> None:
    recipe = start("recipe")
    body = b'{"email": "ada@example.com", "note": "wait"}'
    head = b"POST /shares HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", recipe.port)) as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    recipe.wait_for_log("mail starts")
    recipe.signal(signal.SIGUSR1)
    recipe.wait_for_log("mail sent")


def test_a_client_that_stalls_in_its_body_holds_up_a_stop(start: Start) -> None:
    recipe = start("recipe")
    head = b"POST /shares HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
    with socket.create_connection(("127.0.0.1", recipe.port)) as stalled:
        stalled.sendall(head + b'{"email":')
        httpx2.get(f"{recipe.url}/outcomes")  # the head has arrived before
        recipe.terminate()
        recipe.wait_for_log("Waiting for connections to close")
        time.sleep(0.5)
        assert recipe.is_running
    assert recipe.wait() == -signal.SIGTERM


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


HOSTILE = {
    "out of range float values": [b"NaN", b'{"email": 1e999}', b'{"email": NaN}'],
    "surrogates not allowed": [b'{"note": "\\ud800"}', b'{"\\ud800": 1}'],
}


async def without_input(_: Request, error: RequestValidationError) -> JSONResponse:
    """What the gotcha advises."""
    faults = [{"loc": one["loc"], "msg": one["msg"]} for one in error.errors()]
    return JSONResponse({"detail": faults}, 422)


def test_a_422_that_repeats_what_is_no_json_is_a_500() -> None:
    quiet = FastAPI(exception_handlers={RequestValidationError: without_input})
    quiet.include_router(after_response.app.router)
    headers = {"Content-Type": "application/json"}
    for message, bodies in HOSTILE.items():
        for body in bodies:
            with TestClient(quiet) as client:
                post = partial(client.post, "/shares", content=body, headers=headers)
                assert post().status_code == 422
            with TestClient(after_response.app) as client:
                post = partial(client.post, "/shares", content=body, headers=headers)
                with pytest.raises(ValueError, match=f"(?i){message}"):
                    post()
