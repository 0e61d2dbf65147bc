"""lifespan/graceful_shutdown: a stop loses no request and waits for no stream."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import IO

import httpx2
import pytest
import websockets
from fastapi.testclient import TestClient

from recipes._cookbook.catalogue import ROOT
from recipes.lifespan import graceful_shutdown
from tests.conftest import Serve
from tests.harness.server import Server

RECIPE = "recipes.lifespan.graceful_shutdown"
NAIVE = "tests.behavior.lifespan.naive_graceful_shutdown"
REFUSED = 0
HANGING = "tests.behavior.lifespan.hanging_graceful_shutdown"
NEVER = 3600  # seconds


@asynccontextmanager
async def reading(client: httpx2.AsyncClient) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of a stream of which the first has arrived."""
    async with client.stream("GET", "/ticks") as response:
        lines = response.aiter_lines()
        await anext(lines)
        yield lines


async def ended(server: Server) -> int:
    return await asyncio.to_thread(server.wait)


async def logged(server: Server, text: str) -> None:
    await asyncio.to_thread(server.wait_for_log, text)


async def test_open_streams_end_and_the_process_too(serve: Serve) -> None:
    recipe = serve(RECIPE, timeout_graceful_shutdown=None)
    naive = serve(NAIVE, strict=False, timeout_graceful_shutdown=None)
    limits = httpx2.Limits(max_connections=None)
    async with recipe.client(limits=limits) as one, naive.client() as two:
        async with AsyncExitStack() as stack, reading(two):
            streams = [await stack.enter_async_context(reading(one)) for _ in range(20)]
            naive.terminate()
            recipe.terminate()
            for lines in streams:
                assert "event: bye" in [line async for line in lines]
            assert await ended(recipe) == -signal.SIGTERM
            await logged(naive, "Waiting for connections to close.")
            assert naive.is_running


async def test_the_load_balancer_is_told_before_connections_are_refused(
    recipe: Server, naive: Server
) -> None:
    async with recipe.client() as held:
        async with reading(held) as lines:
            async with recipe.client() as client:
                assert (await client.get("/ready")).status_code == 200
            recipe.terminate()
            while (status := await fresh_get(recipe, "/ready")) == 200:
                pass
            assert status == 503
            assert await fresh_get(recipe, "/live") == 200
            assert (await held.post("/payments")).status_code == 201
            assert recipe.is_running
            assert "Shutting down" not in recipe.log
            recipe.terminate()  # ends the drain
            assert "event: bye" in [line async for line in lines]
    async with naive.client() as held, reading(held):
        assert await fresh_get(naive, "/ready") == 200
        naive.terminate()
        while (status := await fresh_get(naive, "/ready")) == 200:
            pass
        assert status == REFUSED


async def fresh_get(server: Server, path: str) -> int:
    """The status that a new connection gets."""
    try:
        async with server.client() as client:
            return (await client.get(path)).status_code
    except httpx2.TransportError:
        return REFUSED


async def test_the_drain_ends_by_itself(serve: Serve) -> None:
    server = serve(HANGING)
    assert await fresh_get(server, "/ready") == 200
    server.terminate()
    assert await ended(server) == -signal.SIGTERM


async def test_without_a_probe_nothing_waits_and_requests_are_finished(
    recipe: Server,
) -> None:
    async with recipe.client() as client:
        payments = [asyncio.create_task(client.post("/payments")) for _ in range(5)]
        await client.get("/live")  # they have arrived, too
        recipe.terminate()
        await logged(recipe, "Shutting down")
        assert not any(payment.done() for payment in payments)
        for answer in await asyncio.gather(*payments):
            assert answer.status_code == 201
    assert await ended(recipe) == -signal.SIGTERM


async def test_ctrl_c_skips_the_drain_and_a_second_one_the_rest(serve: Serve) -> None:
    server = serve(HANGING, strict=False, timeout_graceful_shutdown=NEVER)
    assert await fresh_get(server, "/ready") == 200
    with not_reading(server):
        server.signal(signal.SIGINT)
        await logged(server, "Waiting for connections to close.")
        for _ in range(3):
            server.terminate()  # does nothing
        assert await fresh_get(server, "/ready") == REFUSED
        assert server.is_running
        server.signal(signal.SIGINT)
        await ended(server)
    assert "Waiting for application shutdown" not in server.log


@contextmanager
def not_reading(server: Server) -> Iterator[None]:
    with socket.create_connection(("127.0.0.1", server.port)) as stalled:
        stalled.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stalled.recv(12) == b"HTTP/1.1 200"
        yield


async def test_what_does_not_end_holds_up_a_stop_unless_it_is_bounded(
    serve: Serve,
) -> None:
    bounded = serve(HANGING, strict=False, timeout_graceful_shutdown=0.2)
    unbounded = serve(HANGING, strict=False, timeout_graceful_shutdown=NEVER)
    with not_reading(bounded), not_reading(unbounded):
        bounded.terminate()
        unbounded.terminate()
        assert await ended(bounded) == -signal.SIGTERM
        assert "Cancel 1 running task(s)" in bounded.log
        assert "cleaned up" not in bounded.log
        await logged(unbounded, "Waiting for connections to close.")
        assert unbounded.is_running
    unbounded.kill()


async def test_the_lifespan_bounds_a_stop_that_the_command_line_does_not(
    serve: Serve,
) -> None:
    server = serve(HANGING, strict=False, timeout_graceful_shutdown=None)
    with not_reading(server):
        server.terminate()
        assert await ended(server) == -signal.SIGTERM
        assert "timeout graceful shutdown exceeded" in server.log


async def test_long_work_after_the_response_is_bounded_too(serve: Serve) -> None:
    server = serve(HANGING, strict=False, timeout_graceful_shutdown=0.2)
    async with server.client() as client:
        await client.get("/background")
    server.terminate()
    await logged(server, "Waiting for background tasks to complete.")
    assert await ended(server) == -signal.SIGTERM


async def test_websockets_are_closed_and_their_endpoints_must_end(serve: Serve) -> None:
    ends = serve(HANGING)
    stays = serve(HANGING, strict=False, timeout_graceful_shutdown=NEVER)
    for server, path in (ends, "/listens"), (stays, "/waits"):
        async with websockets.connect(server.ws_url + path) as websocket:
            server.terminate()
            with pytest.raises(websockets.ConnectionClosed):
                await websocket.recv()
            assert websocket.close_code == 1012
    assert await ended(ends) == -signal.SIGTERM
    await logged(stays, "Waiting for background tasks to complete.")
    assert stays.is_running
    stays.kill()


async def test_a_stop_by_the_number_of_requests_tells_no_stream(serve: Serve) -> None:
    server = serve(
        RECIPE, strict=False, limit_max_requests=1, timeout_graceful_shutdown=0.2
    )
    async with server.client() as client:
        async with reading(client) as lines:
            await client.get("/live")
            with pytest.raises(httpx2.RemoteProtocolError):
                pytest.fail(f"it ended: {[line async for line in lines]}")
    assert await ended(server) == 0


@contextmanager
def uvicorn(*options: str) -> Iterator[tuple[httpx2.Client, IO[str], Popen[str]]]:
    """A supervisor that runs the recipe: a client, its log, and the process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "uvicorn", f"{RECIPE}:app", f"--fd={number}"]
        process = Popen(
            [*command, *options],
            cwd=ROOT,
            pass_fds=[number],
            stderr=subprocess.PIPE,
            text=True,
        )
    with process, httpx2.Client(base_url=url, timeout=20) as client:
        assert process.stderr is not None
        try:
            yield client, process.stderr, process
        finally:
            process.kill()


def test_workers_are_told_by_their_supervisor() -> None:
    with uvicorn("--workers=2") as (client, log, process):
        for _ in range(2):
            until(log, "startup complete")
        with (
            client.stream("GET", "/ticks") as one,
            client.stream("GET", "/ticks") as two,
        ):
            streams = [one.iter_lines(), two.iter_lines()]
            assert {next(lines) for lines in streams} == {"event: tick"}
            process.terminate()
            for lines in streams:
                assert "event: bye" in list(lines)
        assert "Waiting for connections" not in log.read()
        assert process.wait() == 0


def test_a_reload_drains_and_its_supervisor_passes_a_stop_on(tmp_path: Path) -> None:
    with uvicorn("--reload", f"--reload-dir={tmp_path}") as (client, log, process):
        [child] = re.findall(
            r"server process \[(\d+)\]", until(log, "startup complete")
        )
        assert client.get("/ready").status_code == 200
        (tmp_path / "changed.py").touch()
        while (status := client.get("/ready").status_code) == 200:
            pass
        assert status == 503
        os.kill(int(child), signal.SIGTERM)  # ends the drain
        until(log, "startup complete")
        with client.stream("GET", "/ticks") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: tick"
            process.terminate()
            assert "event: bye" in list(lines)
        assert "Waiting for connections" not in log.read()
        assert process.wait() == 0


def until(log: IO[str], text: str) -> str:
    """What is logged until there is a line with `text`."""
    found = ""
    for line in log:
        found += line
        if text in line:
            return found
    pytest.fail(f"{text!r} is not in:\n{found}")


async def test_without_uvicorn_it_starts_without_handlers() -> None:
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    async with graceful_shutdown.lifespan(graceful_shutdown.app):
        assert [signal.getsignal(number) for number in numbers] == before


def test_in_another_thread_it_starts_without_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with TestClient(graceful_shutdown.app) as client:
        assert client.get("/ready").status_code == 200
        assert signal.getsignal(signal.SIGTERM) is before
