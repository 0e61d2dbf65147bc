"""lifespan/http_client: one pool, bounded calls, and the upstream's faults named."""

import asyncio
import contextlib
import gc
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi.testclient import TestClient

from recipes.lifespan import http_client
from tests.behavior.lifespan import naive_http_client
from tests.conftest import Serve
from tests.harness.server import Server

NAIVE = "tests.behavior.lifespan.naive_http_client"
RECIPE = "recipes.lifespan.http_client"
PAYING = "tests.behavior.lifespan.paying_http_client"
QUICK = "tests.behavior.lifespan.quick_http_client"
PATIENT = "tests.behavior.lifespan.patient_http_client"
UPSTREAM = "tests.behavior.lifespan.upstream_http_client"
GOOD = b'{"sku": "anvil", "units": 3}'

Call = Callable[[str], Awaitable[httpx2.Response]]
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def upstream(serve: Serve) -> Server:
    return serve(UPSTREAM, strict=False)


@pytest.fixture
def recipe(serve: Serve, upstream: Server) -> Server:
    return serve(RECIPE, env={"STOCK_URL": upstream.url})


@pytest.fixture
def patient(serve: Serve, upstream: Server) -> Server:
    """The recipe where its limits are not what a test is about."""
    return serve(PATIENT, env={"STOCK_URL": upstream.url})


@pytest.fixture
def naive(serve: Serve, upstream: Server) -> Server:
    return serve(NAIVE, env={"STOCK_URL": upstream.url}, strict=False)


async def seen(upstream: Server) -> dict[str, Any]:
    async with upstream.client() as client:
        found: dict[str, Any] = (await client.get("/seen")).json()
        return found


async def wait_for(upstream: Server, target: str, times: int = 1) -> None:
    while (await seen(upstream))["targets"].count(target) < times:
        await asyncio.sleep(0.02)


@asynccontextmanager
async def raw(answer: Answer) -> AsyncIterator[str]:
    """An upstream that reads a request and writes whatever `answer` writes."""
    tasks: set[asyncio.Task[None] | None] = set()
    ended = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with contextlib.suppress(*ended):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await answer(writer)
        writer.close()
        with contextlib.suppress(*ended):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in filter(None, tasks):
            task.cancel()
            await asyncio.wait([task])


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    length = () if any("Encoding: chunked" in h for h in headers) else (len(body),)
    lines = [f"HTTP/1.1 {status}", *headers, *(f"Content-Length: {n}" for n in length)]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.defect("D4", "D6", "D97")
async def test_what_is_wrong_upstream_is_neither_a_success_nor_our_500(
    patient: Server, naive: Server
) -> None:
    async with patient.client() as good, naive.client() as bad:
        for sku in ("broken", "text", "list", "words", "nothing", "moved"):
            answer = await good.get(f"/stock/{sku}")
            assert answer.status_code == 502
            assert answer.json() == {"detail": "No usable answer"}
        for path in ("/stock/broken", "/shared/stock/broken"):
            answer = await bad.get(path)
            assert answer.status_code == 200
            assert "secret" in answer.text
        assert (await bad.get("/stock/text")).status_code == 500
        answer = await good.get("/stock/missing")
        assert (answer.status_code, answer.json()) == (404, {"detail": "No such item"})
        assert (await good.get("/stock/anvil")).json() == {"sku": "anvil", "units": 3}


@pytest.mark.defect("D5")
async def test_all_requests_share_one_connection_but_no_cookies(
    patient: Server, naive: Server, upstream: Server
) -> None:
    async def connections(server: Server) -> int:
        before = (await seen(upstream))["connections"]
        for sku in ("anvil", "missing", "broken", "words", "moved"):
            async with server.client() as client:  # uvicorn hangs up after a 500
                await client.get(f"/stock/{sku}")
        return int((await seen(upstream))["connections"] - before)

    async def cookies(server: Server, prefix: str) -> list[str]:
        async with server.client() as client:
            for sku in ("alice", "bob"):
                assert (await client.get(f"{prefix}/stock/{sku}")).is_success
        found: list[str] = (await seen(upstream))["cookies"][-2:]
        return found

    assert await connections(patient) == 1
    assert await connections(naive) == 5
    assert await cookies(patient, "") == ["", ""]
    assert await cookies(naive, "/shared") == ["", "user=alice"]


@pytest.mark.defect("D6")
async def test_an_upstream_that_hangs_is_a_504_and_does_not_hold_up_a_stop(
    recipe: Server, naive: Server, upstream: Server
) -> None:
    async with recipe.client() as good, naive.client() as bad:
        ours = asyncio.create_task(good.get("/stock/slow"))
        await wait_for(upstream, "/stock/slow")
        theirs = asyncio.create_task(bad.get("/stock/slow"))
        await wait_for(upstream, "/stock/slow", 2)
        recipe.terminate()
        answer = await ours
        assert answer.status_code == 504
        assert answer.json() == {"detail": "No answer in time"}
        assert await asyncio.to_thread(recipe.wait) == -15
        upstream.kill()
        assert (await theirs).status_code == 500


@pytest.mark.defect("D95")
async def test_the_client_is_closed_with_the_app(
    patient: Server, naive: Server
) -> None:
    async with patient.client() as good, naive.client() as bad:
        assert (await good.get("/stock/anvil")).is_success
        assert (await bad.get("/shared/stock/anvil")).is_success
    assert any("socket" in trouble for trouble in naive.stop())
    assert patient.stop() == []


@pytest.mark.defect("D96")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the naive form's sockets
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_app_can_live_twice(
    upstream: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOCK_URL", upstream.url)
    for _ in range(2):
        with TestClient(http_client.app) as client:
            assert client.get("/stock/anvil").status_code == 200
    with TestClient(naive_http_client.app) as client:
        assert client.get("/shared/stock/anvil").status_code == 200
    with (
        TestClient(naive_http_client.app) as client,
        pytest.raises(RuntimeError, match="Event loop is closed"),
    ):
        client.get("/shared/stock/anvil")
    naive_http_client.shared = None
    gc.collect()


async def test_a_drip_does_not_outlast_the_deadline(serve: Serve) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(http(b" " * 10_000)[:-9_999])
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.1)

    async with raw(drip) as url:
        good = serve(QUICK, env={"STOCK_URL": url})
        bad = serve(NAIVE, env={"STOCK_URL": url}, strict=False)
        async with good.client() as client, bad.client() as patient:
            still_waiting = asyncio.create_task(patient.get("/stock/anvil"))
            await asyncio.sleep(0)
            assert (await client.get("/stock/anvil")).status_code == 504
            assert not still_waiting.done()
            still_waiting.cancel()
        bad.kill()


async def test_a_body_is_read_to_its_limit_and_no_further(serve: Serve) -> None:
    bomb = gzip.compress(GOOD + b" " * (20 << 20))
    zipped = [http(bomb, "Content-Encoding: gzip")]
    endless = [http(b"", "Transfer-Encoding: chunked"), b"10000\r\n%065536d\r\n" % 0]
    body = zipped
    cut_off = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(body[0])
        while body is endless:
            try:
                writer.write(body[1])
                await writer.drain()
            except ConnectionError:
                cut_off.set()
                raise

    async with raw(answer) as url:
        server = serve(PATIENT, env={"STOCK_URL": url})
        async with server.client() as client:
            for one in (zipped, endless):
                body = one
                assert (await client.get("/stock/anvil")).status_code == 502
            assert server.log.count("too long") == 2
            await cut_off.wait()


HOSTILE = {
    "garbage": b"\x16\x03\x01 hello\r\n\r\n",
    "nothing at all": b"",
    "cut off": http(GOOD)[:-5],
    "endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000,
    "bad length": http(GOOD).replace(b"Length: 28", b"Length: -1"),
    "two lengths": http(GOOD, "Content-Length: 5"),
    "bad chunk": http(b"zz\r\n\r\n", "Transfer-Encoding: chunked"),
    "not gzip": http(GOOD, "Content-Encoding: gzip"),
    "switched": http(b"", status="101 Switching Protocols"),
    "bad redirect": http(b"", "Location: http://[", status="302 Found"),
    "odd status": http(GOOD, status="999 "),
    "bad cookie": http(b"", "Set-Cookie: \xff=;;;expires=\xff", status="500 \xff"),
    "not UTF-8": http(b'{"sku": "\xff", "units": 3}'),
    "half a character": http(b'{"sku": "\\ud800", "units": 3}'),
    "not a number": http(b'{"sku": "anvil", "units": NaN}'),
    "a huge number": http(b'{"sku": "anvil", "units": 1%s}' % (b"0" * 5000)),
    "deep": http(b"[" * 60_000),
    "null": http(b"null"),
}


async def test_no_answer_however_odd_is_more_than_a_502(serve: Serve) -> None:
    odd = b""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(odd)
        await writer.drain()
        writer.close()

    async with raw(answer) as url:
        server = serve(PATIENT, env={"STOCK_URL": url})
        async with server.client() as client:
            for name, text in HOSTILE.items():
                odd = text
                response = await client.get("/stock/anvil")
                assert response.status_code == 502, name
                assert response.json() == {"detail": "No usable answer"}
            odd = http(GOOD)
            assert (await client.get("/stock/anvil")).status_code == 200
    async with server.client() as client:  # and nobody listens any more
        response = await client.get("/stock/anvil")
        assert response.status_code == 502
        assert response.json() == {"detail": "No usable answer"}
        assert "ConnectError" in server.log


async def test_a_caller_cannot_choose_another_path(
    patient: Server, naive: Server, upstream: Server
) -> None:
    reached = {"x%3Fadmin=1": "/stock/x?admin=1", "%2e%2e": "/", "x%23y": "/stock/x"}
    others = [
        "..%2fadmin",
        "a b",
        "%00",
        "%0d%0aX: y",
        "%ff",
        "x" * 41,
        "x%0a",
        "\u0661",
    ]
    async with patient.client() as good, naive.client() as bad:
        for sku in [*reached, *others]:
            assert (await good.get(f"/stock/{sku}")).status_code in (404, 422)
        assert (await seen(upstream))["targets"] == []
        for sku in reached:
            await bad.get(f"/stock/{sku}")
        assert (await seen(upstream))["targets"] == [*reached.values()]


@pytest.mark.parametrize("path", ["/..", "/%2E%2E", "/%2E"])
def test_dots_stay_a_name_only_where_they_are_escaped(path: str) -> None:
    sent = httpx2.Request("GET", f"http://x/stock{path}").url.raw_path.decode()
    assert sent == ("/" if path == "/.." else f"/stock{path}")


async def test_a_full_pool_is_a_503_and_recovers(
    patient: Server, upstream: Server
) -> None:
    async with patient.client() as client, upstream.client() as control:

        async def fill(times: int) -> list[asyncio.Task[httpx2.Response]]:
            calls = [asyncio.create_task(client.get("/stock/slow")) for _ in range(2)]
            await wait_for(upstream, "/stock/slow", times)
            return calls

        calls = await fill(2)
        answer = await client.get("/stock/anvil")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        await control.post("/release")
        assert {call.status_code for call in await asyncio.gather(*calls)} == {200}
        assert (await client.get("/stock/anvil")).status_code == 200


async def test_calls_that_time_out_free_their_connections(
    serve: Serve, upstream: Server
) -> None:
    server = serve(QUICK, env={"STOCK_URL": upstream.url})
    async with server.client() as client:
        for times in (2, 4):  # with two connections
            calls = [client.get("/stock/slow") for _ in range(2)]
            answers = await asyncio.gather(*calls)
            assert {answer.status_code for answer in answers} == {504}
            await wait_for(upstream, "/stock/slow", times)
        upstream.kill()
        assert (await client.get("/stock/anvil")).status_code == 502


async def test_a_stale_connection_is_replaced_and_a_lost_call_is_not_repeated(
    serve: Serve,
) -> None:
    arrived = 0
    text = http(GOOD)
    closed = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        arrived += 1
        writer.write(text)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with raw(answer) as url:
        server = serve(PATIENT, env={"STOCK_URL": url})
        async with server.client() as client:
            for _ in range(3):
                assert (await client.get("/stock/anvil")).status_code == 200
                await closed.wait()
                closed.clear()
            text = b""
            assert (await client.get("/stock/anvil")).status_code == 502
            assert arrived == 4
            assert "Server disconnected without sending a response." in server.log


async def test_a_surplus_response_goes_to_the_next_caller(serve: Serve) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(http(GOOD) + http(b'{"sku": "surplus", "units": 1}'))

    async with raw(answer) as url:
        server = serve(PATIENT, env={"STOCK_URL": url})
        async with server.client() as client:
            answers = [(await client.get("/stock/anvil")).json() for _ in range(2)]
    assert [answer["sku"] for answer in answers] == ["anvil", "surplus"]


async def test_a_post_is_not_done_twice_with_an_idempotency_key(
    serve: Serve, upstream: Server
) -> None:
    """A 504 leaves open whether it was; the caller names the errors it passes on."""
    server = serve(PAYING, env={"STOCK_URL": upstream.url})
    async with server.client() as client, upstream.client() as control:
        for _ in range(2):
            calls = [client.post("/pay/7", headers=key) for key in ({"key": "a"}, {})]
            answers = await asyncio.gather(*calls)
            assert {answer.status_code for answer in answers} == {504}
        assert (await seen(upstream))["charges"] == [7, 7, 7]  # "a", and one each
        await control.post("/release")
        answer = await client.post("/pay/7", headers={"key": "a"})
        assert (answer.status_code, answer.json()) == (200, {"order": 7})
        assert len((await seen(upstream))["charges"]) == 3
        answer = await client.post("/pay/13")
        assert (answer.status_code, answer.json()) == (402, {"detail": "Card declined"})


async def test_without_a_url_a_stand_in_answers(serve: Serve) -> None:
    async with serve(RECIPE).client() as client:
        assert (await client.get("/stock/anvil")).json() == {"sku": "anvil", "units": 3}
        assert (await client.get("/stock/nothing")).status_code == 404
        assert (await client.get("/stock/broken")).status_code == 502
