"""observability/blocking_calls: names the call that blocks, while it blocks."""

import asyncio
import random
import re
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from blockbuster import BlockingError, blockbuster_ctx
from fastapi.testclient import TestClient

from recipes.observability import blocking_calls
from tests.behavior.observability import gated_blocking_calls
from tests.conftest import Serve
from tests.harness.server import Server

GATED = "tests.behavior.observability.gated_blocking_calls"
NAIVE = "tests.behavior.observability.naive_blocking_calls"
BLOCKED = "The event loop is blocked:"


async def stalls(server: Server) -> int:
    async with server.client() as client:
        return int((await client.get("/loop")).json()["stalls"])


def reports(server: Server, place: str) -> list[str]:
    """The stacks in which `place` is."""
    return [stack for stack in server.log.split(BLOCKED)[1:] if place in stack]


async def post(server: Server, url: str, **params: Any) -> None:
    async with server.client() as client:
        assert (await client.post(url, params=params)).is_success


async def test_the_place_is_logged_while_the_call_blocks(
    serve: Serve, tmp_path: Path
) -> None:
    recipe, naive = serve(GATED, strict=False), serve(NAIVE, strict=False)
    gate = tmp_path / "gate"
    call = asyncio.create_task(post(recipe, "/wait", path=str(gate)))
    log = await asyncio.to_thread(recipe.wait_for_log, "in wait_for_file")
    assert re.search(r'gated_blocking_calls.py", line \d+, in wait_for_file\n', log)
    assert not call.done()
    gate.touch()
    await call
    number = 0
    while "The event loop was blocked for" not in naive.log:
        gate, number = tmp_path / str(number), number + 1
        call = asyncio.create_task(post(naive, "/wait", path=str(gate)))
        await asyncio.sleep(0.4)
        gate.touch()
        await call
        await asyncio.sleep(0.2)  # until it measures again
    assert "wait_for_file" not in naive.log


async def test_a_stall_is_reported_once_and_counted_once(serve: Serve) -> None:
    server = serve(GATED)
    await post(server, "/busy", seconds=10 * blocking_calls.THRESHOLD)
    assert len(reports(server, "in compute")) == 1
    assert "in busy" in reports(server, "in compute")[0]
    found = {"lag": 0.0, "longest": 0.0}
    async with server.client() as client:
        while not found["lag"] < found["longest"]:  # until it has measured again
            found = (await client.get("/loop")).json()
    assert found["stalls"] >= 1
    assert found["longest"] >= 9 * blocking_calls.THRESHOLD


async def test_many_stalls_do_not_flood_the_log(serve: Serve) -> None:
    server = serve(GATED, env={"LOG_INTERVAL": "3600"})
    for _ in range(4):
        await post(server, "/busy", seconds=2 * blocking_calls.THRESHOLD)
        await post(server, "/await", seconds=2 * blocking_calls.INTERVAL)
    while await stalls(server) < 2:
        await post(server, "/busy", seconds=2 * blocking_calls.THRESHOLD)
    assert server.log.count(BLOCKED) == 1


async def test_many_short_steps_are_reported_too(serve: Serve) -> None:
    server = serve(GATED)
    while not reports(server, "in step"):
        await post(server, "/steps")
    assert "in short_steps" not in reports(server, "in step")[0]


@pytest.mark.parametrize(
    ("new_loop", "end"),
    [(asyncio.new_event_loop, "in select"), (uvloop.new_event_loop, "runners.py")],
)
def test_a_stack_tells_that_the_loop_was_idle(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
    end: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocking_calls, "LOG_INTERVAL", 0)

    async def log_until_idle() -> None:
        watchdog = blocking_calls.Watchdog()
        log_stack = watchdog._log_stack  # noqa: SLF001 - so that nothing blocks
        while not caplog.messages or end not in innermost(caplog.messages[-1]):
            await asyncio.to_thread(log_stack)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(log_until_idle())


def innermost(stack: str) -> str:
    """The line of `stack` that names the place where it ends."""
    return [line for line in stack.splitlines() if line.startswith('  File "')][-1]


async def test_what_awaits_or_runs_in_a_thread_is_not_reported(serve: Serve) -> None:
    server = serve(GATED)
    seconds = 4 * blocking_calls.THRESHOLD
    await asyncio.gather(
        *(post(server, "/await", seconds=seconds) for _ in range(10)),
        *(post(server, "/thread", seconds=seconds) for _ in range(10)),
    )
    assert "in awaits" not in server.log
    assert "in in_a_thread" not in server.log


async def test_a_call_that_holds_the_gil_is_counted_and_faulthandler_shows_it(
    serve: Serve,
) -> None:
    server = serve(GATED)
    await post(server, "/regex")
    shown = server.log.partition("Timeout (0:00:00.05")[2]
    assert "in holds_the_gil" in shown
    await post(server, "/await", seconds=0)
    while not await stalls(server):
        await asyncio.sleep(0.01)


def test_the_thread_ends_with_the_app() -> None:
    for _ in range(2):
        with TestClient(blocking_calls.app) as client:
            assert client.get("/loop").json()["stalls"] >= 0
            assert "watchdog" in {thread.name for thread in threading.enumerate()}
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def free_port() -> int:
    """The first of three; below the ports that the system gives to connections."""
    while True:
        port = random.randrange(10_000, 30_000)  # noqa: S311 - no secret
        with ExitStack() as stack, suppress(OSError):
            for each in range(port, port + 3):
                stack.enter_context(socket.create_server(("127.0.0.1", each)))
            return port


def ask(port: int, command: str) -> str:
    """What the console of aiomonitor prints until it asks for the next command."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as telnet:
        # Terminal: we are an xterm of 200 x 50 characters.
        telnet.sendall(
            b"\xff\xfa\x18\x00xterm\xff\xf0\xff\xfa\x1f\x00\xc8\x00\x32\xff\xf0"
        )
        telnet.sendall(command.encode() + b"\r\n")
        answer = b""
        while b"tasks running\r\n+" not in answer or not answer.count(b"+\r\n") >= 3:
            answer += telnet.recv(4096)
        return answer.decode(errors="replace")


def test_a_console_lists_the_tasks_if_asked_for(serve: Serve) -> None:
    port = free_port()
    environment = {"AIOMONITOR_PORT": str(port)}
    asked = serve("recipes.observability.blocking_calls", env=environment, strict=False)
    assert "Server.serve()" in ask(port, "ps")
    taken = serve("recipes.observability.blocking_calls", env=environment, strict=False)
    assert "Address already in use" not in taken.log
    taken.stop()
    assert "Address already in use" in taken.log
    for other in (port, port + 1):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((own_address(), other), timeout=5)
    asked.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def own_address() -> str:
    """An address of this machine that is not the one that it listens on."""
    return "127.0.0.2"


def test_in_tests_blockbuster_raises_for_what_waits_but_not_for_what_computes() -> None:
    told = re.escape("Blocking call to time.sleep")
    with TestClient(gated_blocking_calls.app) as client, blockbuster_ctx():
        with pytest.raises(BlockingError, match=told):
            client.post("/sleep")
        assert client.post("/busy", params={"seconds": 0.01}).is_success


def test_debug_mode_logs_afterwards_and_not_the_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asyncio.run(gated_blocking_calls.compute(0.2), debug=True)
    [message] = [text for text in caplog.messages if text.startswith("Executing <Task")]
    assert re.search(r"took 0\.[0-9]{3} seconds", message)
    assert "in busy" not in message
