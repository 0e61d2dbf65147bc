"""routes/deadline: one budget for all waits of a request, then a 504 and no work."""

import asyncio
import socket

import httpx2
import pytest

from tests.conftest import Serve
from tests.harness.server import Server

FOLDER = "tests.behavior.routes"
LATE = {"detail": "No answer in time"}
SOON = {"X-Timeout-Ms": "100"}


@pytest.fixture(scope="module")
def servers(serve_for_file: Serve) -> dict[str, Server]:
    return {
        "recipe": serve_for_file("recipes.routes.deadline"),
        "short": serve_for_file(f"{FOLDER}.short_deadline"),
        "naive": serve_for_file(f"{FOLDER}.naive_deadline", strict=False),
    }


@pytest.fixture
def recipe(servers: dict[str, Server]) -> Server:
    return servers["recipe"]


@pytest.fixture
def short(servers: dict[str, Server]) -> Server:
    """The recipe's route class with a budget of one second, on routes that resist."""
    httpx2.post(f"{servers['short'].url}/reset").raise_for_status()
    return servers["short"]


@pytest.fixture
def naive(servers: dict[str, Server]) -> Server:
    return servers["naive"]


async def is_late(
    client: httpx2.AsyncClient,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
) -> bool:
    answer = await client.request(method, path, headers=headers)
    return (answer.status_code, answer.json()) == (504, LATE)


async def test_after_the_504_the_work_does_not_go_on(
    short: Server, naive: Server
) -> None:
    async def charges_after_504(server: Server) -> object:
        async with server.client() as client:
            assert await is_late(client, "POST", "/charge/7")
            await client.post("/bank-is-up")
            await client.post("/charge/8")
            return (await client.get("/charges")).json()

    both = await asyncio.gather(charges_after_504(short), charges_after_504(naive))
    assert list(both) == [[8], [7, 8]]


async def test_a_timeout_error_of_the_endpoint_is_not_the_deadline(
    short: Server, naive: Server
) -> None:
    async with short.client() as one, naive.client() as other:
        assert (await one.get("/own-timeout")).status_code == 500
        assert await is_late(other, "GET", "/own-timeout")
    short.wait_for_log("TimeoutError: no connection free")


async def test_waits_that_are_short_enough_alone_are_too_long_together(
    recipe: Server,
) -> None:
    async with recipe.client() as client:
        assert (await client.get("/orders?ms=10")).status_code == 200
        budget = {"X-Timeout-Ms": "300"}
        assert await is_late(client, "GET", "/orders?ms=200", budget)
    assert "/orders is out of time: TimeoutError()" in recipe.log


async def test_everything_before_the_response_counts(short: Server) -> None:
    """A body that stalls, a dependency that hangs."""
    with socket.create_connection(("127.0.0.1", short.port)) as stalled:
        head = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"X-Timeout-Ms: 100\r\n"
        stalled.sendall(head + b"Content-Length: 100\r\n\r\n[1, 2,")
        stalled.settimeout(20)
        answer = await asyncio.to_thread(stalled.recv, 1024)
        assert answer.startswith(b"HTTP/1.1 504")
    async with short.client() as client:
        assert (await client.post("/body", json=[1, 2])).json() == 2
        assert await is_late(client, "GET", "/hanging-dependency", SOON)


async def test_cleanup_runs_and_may_await(short: Server) -> None:
    async with short.client() as client:
        assert await is_late(client, "GET", "/cleanup", SOON)
        assert "endpoint cleaned up\n" in short.log
        assert "dependency cleaned up after HTTPException\n" in short.log
        assert (await client.get("/cleanup-anyio")).json() == "moved on"
        assert "anyio cleaned up" not in short.log
        assert await is_late(client, "GET", "/cleanup-fails", SOON)
        assert (
            "/cleanup-fails is out of time: HTTPException(status_code=418" in short.log
        )


async def test_who_ignores_the_cancellation_is_late_too(short: Server) -> None:
    async with short.client() as client:
        assert await is_late(client, "GET", "/swallows", SOON)
        assert "/swallows is out of time: 'its cancellation was ignored'" in short.log


async def test_a_thread_goes_on_and_a_stream_is_not_limited(short: Server) -> None:
    async with short.client() as client:
        stream = asyncio.create_task(client.get("/stream", headers=SOON))
        while short.log.count("a thread starts") <= 40:  # none of them has ended
            late = [is_late(client, "GET", "/thread", SOON) for _ in range(20)]
            assert all(await asyncio.gather(*late))
        await client.post("/bank-is-up")
        log = await asyncio.to_thread(short.wait_for_log, "a thread is done")
        assert "a thread is done, 0.0 s left" in log
        assert (await stream).json() == 1


async def test_a_caller_can_only_shorten_the_budget(
    short: Server, recipe: Server
) -> None:
    async with short.client() as client:

        async def left(text: str) -> float:
            answer = await client.get("/left", headers={b"X-Timeout-Ms": text.encode()})
            return float(answer.json())

        assert 0 < await left("500") < 0.5
        for text in ("999999999", "1" * 4000, "-5", "1e3", "", "\N{SUPERSCRIPT TWO}"):
            assert 0.5 < await left(text) < 1
    async with recipe.client() as client:
        assert await is_late(client, "GET", "/orders", {"X-Timeout-Ms": "0"})


async def test_a_stop_waits_for_the_deadline_and_no_longer(serve: Serve) -> None:
    short = serve(f"{FOLDER}.short_deadline")
    async with short.client() as client:
        charge = asyncio.create_task(is_late(client, "POST", "/charge/7"))
        await asyncio.to_thread(short.wait_for_log, "charge 7 waits")
        short.terminate()
        assert await charge
    assert await asyncio.to_thread(short.wait) == -15


async def test_a_hundred_late_requests_are_all_answered(short: Server) -> None:
    async with short.client() as client:
        late = [is_late(client, "POST", f"/charge/{n}", SOON) for n in range(100)]
        assert all(await asyncio.gather(*late))
        assert (await client.get("/charges")).json() == []
