"""websocket/typed_messages: bad input gets an answer, not a closed socket."""

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from recipes.websocket.typed_messages import MAX_MESSAGE
from tests.conftest import Serve
from tests.harness.server import Server

SMALL = "tests.behavior.websocket.small_typed_messages"
PRICE: dict[str, object] = {"type": "price", "id": "1", "item": "tea"}
ORDER = PRICE | {"type": "order", "quantity": 2}
HANDSHAKE = (
    b"GET /orders HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def opened(server: Server) -> connect:
    return connect(f"{server.ws_url}/orders", compression=None, max_size=None)


async def ask(peer: ClientConnection, message: str | bytes | object) -> Any:
    raw = message if isinstance(message, str | bytes) else json.dumps(message)
    await peer.send(raw)
    return json.loads(await peer.recv())


@contextmanager
def raw_peer(server: Server, buffer: int | None = None) -> Iterator[socket.socket]:
    """A peer that reads only when told; a small buffer is soon full."""
    with socket.socket() as raw:
        if buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
        raw.settimeout(20)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(HANDSHAKE)
        reply = b""
        while not reply.endswith(b"\r\n\r\n"):
            reply += raw.recv(1)
        assert reply.startswith(b"HTTP/1.1 101")
        yield raw


def frame(message: bytes) -> bytes:
    """A short text message, masked with zeros."""
    return bytes([0x81, 0x80 | len(message), 0, 0, 0, 0]) + message


def reset(raw: socket.socket) -> None:
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


async def closed_by(server: Server, message: str | bytes) -> int | None:
    """The code with which the server closes the socket after this message."""
    async with opened(server) as peer:
        await peer.send(message)
        with pytest.raises(ConnectionClosed):
            await peer.recv()
        return peer.close_code


KINDS: list[Any] = [None, 1, [], {}, ["price"], True, "price"]
JUNK: list[Any] = [
    *("{oops", "[1]", b"binary", b"\x00\xff", b"", "", "null", "0", "NaN", '"x"', "{}"),
    *("[" * MAX_MESSAGE, '{"a":' * 700, "1" * MAX_MESSAGE, "\ufeff{}", "\0"),
    *({"type": kind, "id": 1} for kind in KINDS),
    '{"type": "price", "id": "\\ud800", "item": "tea"}',
    b'{"type": "price", "id": "1", "item": "\xff"}',
    ORDER | {"id": "x" * 41},
    ORDER | {"id": 7},
]


@pytest.mark.defect("D37", "D51", "D52")
async def test_what_is_no_request_is_answered(recipe: Server, naive: Server) -> None:
    for bad in (b"binary", "{oops", "[1]"):
        assert await closed_by(naive, bad) == 1006
    for error in ("KeyError: 'text'", "JSONDecodeError", "AttributeError"):
        assert error in naive.log
    unknown = {"type": "refund", "id": "r-1"}
    async with opened(naive) as peer:
        await peer.send(json.dumps(unknown))
        assert (await ask(peer, ORDER))["type"] == "ordered"  # and nothing before it

    async with opened(recipe) as peer:
        for bad in JUNK:
            reply = await ask(peer, bad)
            assert (reply["type"], reply["id"]) == ("invalid", None), bad
            assert reply["result"]
            assert (await ask(peer, ORDER))["type"] == "ok"
        reply = await ask(peer, unknown)
        assert (reply["type"], reply["id"]) == ("invalid", "r-1")
        assert "'refund'" in reply["result"]
    assert "Traceback" not in recipe.log


WRONG: list[dict[str, Any]] = [
    *({"quantity": q} for q in (0, 101, 1.5, "x", None, 10**400, float("nan"))),
    *({"item": i} for i in (None, 7, ["tea"], "x" * 41)),
]


async def test_answers_match_their_requests(recipe: Server) -> None:
    async with opened(recipe) as peer:
        reply = await ask(peer, ORDER | {"id": "a-7"})
        assert reply == {"type": "ok", "id": "a-7", "result": "2 tea ordered"}
        assert (await ask(peer, PRICE | {"id": "\0é\U0001f600"}))["type"] == "ok"
        # What a newer client sends, too, does no harm.
        assert (await ask(peer, PRICE | {"color": "green"}))["type"] == "ok"
        assert (await ask(peer, json.dumps(ORDER).encode()))["type"] == "ok"  # binary
        for fields in WRONG:
            reply = await ask(peer, ORDER | fields)
            assert (reply["type"], reply["id"]) == ("invalid", "1"), fields
            assert f"order: {next(iter(fields))}: " in reply["result"]
            assert (await ask(peer, ORDER))["type"] == "ok"


async def test_a_large_message_is_refused_in_few_words(recipe: Server) -> None:
    async with opened(recipe) as peer:
        for bad in ("x" * 100_000, "[" * 100_000, {"type": "x" * 3900}):
            reply = await ask(peer, bad)
            assert reply["type"] == "invalid"
            assert len(json.dumps(reply)) < MAX_MESSAGE + 500
        for length, kind in ((MAX_MESSAGE, "ok"), (MAX_MESSAGE + 1, "invalid")):
            message = json.dumps(PRICE).ljust(length)
            assert (await ask(peer, message))["type"] == kind


async def test_more_than_uvicorn_takes_closes_the_connection(serve: Serve) -> None:
    server = serve("recipes.websocket.typed_messages", ws_max_size=65536)
    assert await closed_by(server, "x" * 65537) == 1009
    async with opened(server) as peer:
        assert (await ask(peer, "x" * 65536))["type"] == "invalid"


async def test_who_sends_only_junk_is_answered_and_stays(recipe: Server) -> None:
    async with opened(recipe) as peer:
        for _ in range(30):
            assert (await ask(peer, "junk"))["type"] == "invalid"
        assert (await ask(peer, ORDER))["type"] == "ok"


async def flood_before_a_word(server: Server, flood: int) -> int:
    """How much of one peer's flood is answered before another's later request."""
    with raw_peer(server) as raw:
        async with opened(server) as ann:
            raw.sendall(flood * frame(json.dumps(PRICE).encode()))
            found = await asyncio.to_thread(raw.recv, 1)
            await ask(ann, ORDER)
        raw.settimeout(0)  # only what is there already
        with suppress(BlockingIOError):
            while chunk := raw.recv(1 << 20):
                found += chunk
        reset(raw)
    return found.count(b"type")


async def test_a_flood_does_not_delay_the_others(recipe: Server, naive: Server) -> None:
    flood = 400
    assert await flood_before_a_word(naive, flood) > flood / 2
    assert await flood_before_a_word(recipe, flood) < flood / 2


async def test_an_error_of_ours_is_answered_and_logged(serve: Serve) -> None:
    server = serve(SMALL)
    async with opened(server) as peer:
        for item in ("bug", "hangs"):  # the second one until TIME_LIMIT
            reply = await ask(peer, PRICE | {"item": item})
            assert (reply["type"], reply["id"]) == ("failed", "1")
            assert reply["result"] == "it may have happened"  # not: try again
        assert (await ask(peer, ORDER))["type"] == "ok"
    assert "KeyError: 'no such column'" in server.log
    assert "TimeoutError" in server.log


async def test_a_peer_that_does_not_read_is_given_up(serve: Serve) -> None:
    server = serve(SMALL, strict=False, log_level="trace")
    with raw_peer(server, buffer=4096) as raw:
        long = json.dumps(PRICE | {"item": "long"}).encode()
        raw.sendall(40 * frame(long))
        # The application has ended, though the peer neither reads nor leaves.
        await asyncio.to_thread(server.wait_for_log, "] Completed", 20)
        async with opened(server) as ann:
            assert (await ask(ann, ORDER))["type"] == "ok"
        reset(raw)
    assert "Traceback" not in server.log


async def test_clients_that_leave_in_any_way_are_no_error(recipe: Server) -> None:
    for close in (reset, socket.socket.close):
        for sent in (b"", frame(b"junk"), frame(b"")[:3], b"\x81\xfe"):
            with raw_peer(recipe) as raw:
                raw.sendall(sent)
                close(raw)
    raw = socket.create_connection(("127.0.0.1", recipe.port))
    raw.sendall(HANDSHAKE + frame(json.dumps(PRICE).encode()))
    reset(raw)  # before it was accepted
    async with opened(recipe) as peer:
        assert (await ask(peer, ORDER))["type"] == "ok"
    assert "Traceback" not in recipe.log


async def test_a_stop_closes_at_once_and_tells_so(serve: Serve) -> None:
    server = serve(SMALL)
    async with opened(server) as idle, opened(server) as busy:
        await busy.send(json.dumps(PRICE | {"item": "hangs"}))
        await asyncio.to_thread(server.wait_for_log, "hangs\n")
        server.terminate()
        for peer in (idle, busy):
            with pytest.raises(ConnectionClosed):
                await peer.recv()
            assert peer.close_code == 1012
    assert await asyncio.to_thread(server.wait) == -15
    assert "ASGI application" not in server.log
