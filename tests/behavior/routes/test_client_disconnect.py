"""routes/client_disconnect: no work for a client that has left."""

import asyncio
import json
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.harness.served import Options
from tests.harness.server import Server


class Held(Server):
    """The recipe with a model and a bank that wait for the test."""

    start = 0

    def reset(self) -> None:
        httpx2.post(f"{self.url}/reset").raise_for_status()
        self.start = len(super().log)

    @property
    def log(self) -> str:
        """The lines of this test."""
        return super().log[self.start :]


@pytest.fixture(scope="module")
def one_held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    log = tmp_path_factory.mktemp("held") / "log"
    held = Held(Options("tests.behavior.routes.held_client_disconnect", log))
    try:
        yield held
        assert held.stop() == []
    finally:
        held.kill()


@pytest.fixture
def held(one_held: Held) -> Held:
    one_held.reset()
    return one_held


def post(path: str, prompt: str = "Why?") -> bytes:
    body = json.dumps({"prompt": prompt}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def send(server: Server, *requests: bytes) -> socket.socket:
    """A client that has sent `requests`, back to back."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(b"".join(requests))
    return connection


async def wait_until(client: httpx2.AsyncClient, **expected: int) -> None:
    while not expected.items() <= (await client.get("/usage")).json().items():
        await asyncio.sleep(0.02)


async def test_the_work_of_a_client_that_left_is_cancelled(
    held: Server, naive: Server
) -> None:
    async with held.client() as client:
        with send(held, post("/answers")):
            await wait_until(client, started=1)
        await wait_until(client, cancelled=1, charged=0)
    held.wait_for_log("499 '/answers': the client has left")
    assert '"POST /answers' not in held.log  # no line of uvicorn's access log

    async with naive.client() as client:
        with send(naive, post("/answers")):
            await wait_until(client, started=1)
        await client.post("/finish")
        await wait_until(client, charged=1, cancelled=0)


async def test_a_client_that_stays_gets_its_answer(recipe: Server) -> None:
    """Over one connection, before and after another client has left."""
    async with recipe.client() as client:
        for number in range(1, 6):
            answer = await client.post("/answers", json={"prompt": "Why?"})
            assert answer.json() == "Because."
            with send(recipe, post("/answers", "slow")):
                await wait_until(client, started=2 * number)
            await wait_until(client, cancelled=number, charged=number)
        assert (await client.post("/answers", json={})).status_code == 422
        head, _ = post("/answers", "x" * 70_000).split(b"\r\n\r\n")
        with send(recipe, head + b"\r\n\r\n") as huge:
            start = await asyncio.to_thread(huge.recv, 100)
            assert start.startswith(b"HTTP/1.1 413")


async def test_a_payment_is_finished_though_the_client_left(held: Server) -> None:
    async with held.client() as client:
        await client.post("/finish")
        with send(held, post("/answers")):
            await asyncio.to_thread(held.wait_for_log, "charging")
        await client.post("/bank-is-done")
        await wait_until(client, charged=1, cancelled=0)


async def test_half_of_the_work_is_not_charged(held: Server) -> None:
    """A library that catches the cancellation and returns."""
    async with held.client() as client:
        with send(held, post("/answers", "stubborn")):
            await wait_until(client, started=1)
        await wait_until(client, cancelled=1)
    while "499 '/answers'" not in held.log:
        assert "charging" not in held.log
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "request_", [b"GET /no-body HTTP/1.1\r\nHost: x\r\n\r\n", post("/no-body")]
)
async def test_it_also_works_where_nobody_has_read_the_body(
    held: Server, request_: bytes
) -> None:
    async with held.client() as client:
        with send(held, request_):
            await wait_until(client, started=1)
        await wait_until(client, cancelled=1)
    held.wait_for_log("dependency saw 499")


async def test_it_works_below_a_middleware(held: Server) -> None:
    async with held.client() as client:
        with send(held, post("/answers?middleware=1")):
            await wait_until(client, started=1)
        await wait_until(client, cancelled=1)
        held.wait_for_log("middleware saw 499")


async def test_errors_of_the_work_stay_what_they_are(held: Server) -> None:
    async with held.client() as client:
        await client.post("/finish")
        answer = await client.post("/answers", json={"prompt": "too hard"})
        assert answer.status_code == 418
        answer = await client.post("/answers", json={"prompt": "timeout"})
        assert answer.status_code == 500  # not a 499
    assert "the client has left" not in held.log


async def test_a_client_that_closes_its_sending_side_counts_as_gone(
    held: Server,
) -> None:
    async with held.client() as client:
        with send(held, post("/answers")) as half:
            await wait_until(client, started=1)
            half.shutdown(socket.SHUT_WR)
            await wait_until(client, cancelled=1)
            assert await asyncio.to_thread(half.recv, 100) == b""


async def test_of_pipelined_requests_uvicorn_tells_only_the_last(
    held: Server,
) -> None:
    async with held.client() as client:
        with send(held, post("/answers"), post("/answers")):
            await wait_until(client, started=1)
        with send(held, post("/answers")):
            await wait_until(client, started=2)
        await wait_until(client, cancelled=1)  # of the client that came later
        await client.post("/finish")
        await client.post("/bank-is-done")
        await wait_until(client, charged=1)


async def test_a_hundred_clients_that_leave_stop_all_the_work(held: Server) -> None:
    async with held.client() as client:
        gone = [send(held, post("/answers")) for _ in range(100)]
        await wait_until(client, started=100)
        for connection in gone:
            connection.close()
        await wait_until(client, cancelled=100, charged=0)
