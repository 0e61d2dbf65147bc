"""websocket/rooms: nobody waits for a stalled or dead member."""

import asyncio
import json
import signal
import socket
import struct
from asyncio import TaskGroup
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from importlib import import_module
from threading import Event
from typing import Any, cast

import anyio
import pytest
from fastapi import WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from recipes.websocket import rooms
from tests.behavior.websocket import small_rooms
from tests.conftest import Serve
from tests.harness.server import Server

SMALL = "tests.behavior.websocket.small_rooms"
NAIVE = "tests.behavior.websocket.naive_rooms"
PINGS = "tests.behavior.websocket.pings"

# Large messages. The buffers of `raw_member` and of uvicorn hold fewer than 10 of them:
# STALLS is more than that and less than a backlog, DROPS is more than both.
STALLS = 16
DROPS = small_rooms.BACKLOG + STALLS
PATIENCE = 100  # other requests that are answered while a room is silent

HANDSHAKE = (
    b"GET /rooms/lobby HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture
def recipe(serve: Serve) -> Server:
    return serve(SMALL)


def frame(text: str) -> bytes:
    """A short text message, masked with zeros."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text.encode()


def large(number: int) -> str:
    return f"{number} ".ljust(small_rooms.MAX_MESSAGE, "x")


def join(server: Server, room: str = "lobby") -> connect:
    """A member that always reads, also while nobody looks."""
    url = f"{server.ws_url}/rooms/{room}"
    return connect(url, compression=None, max_queue=None)


@contextmanager
def raw_member(server: Server) -> Iterator[socket.socket]:
    """A member that reads only when told; small buffers keep the load small."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
        raw.settimeout(20)
        raw.connect(("127.0.0.1", server.port))
        raw.sendall(HANDSHAKE)
        opened(raw)
        yield raw


def opened(raw: socket.socket) -> None:
    """Read to the end of the handshake."""
    reply = b""
    while not reply.endswith(b"\r\n\r\n"):
        reply += raw.recv(1)
    assert reply.startswith(b"HTTP/1.1 101")


def reset(raw: socket.socket) -> None:
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


def reads_until(raw: socket.socket, needle: bytes) -> bool:
    tail = b""
    while chunk := raw.recv(1 << 16):
        if needle in tail + chunk:
            return True
        tail = chunk[-len(needle) :]
    return False


async def hear(member: ClientConnection, kind: str = "message") -> dict[str, Any]:
    """The next event of this kind."""
    while True:
        event: dict[str, Any] = json.loads(await member.recv())
        if event["type"] == kind:
            return event


async def talk(member: ClientConnection, count: int) -> None:
    """Say large messages, each when the one before was heard."""
    for number in range(count):
        await member.send(large(number))
        await hear(member)


async def talk_until_left(member: ClientConnection) -> dict[str, Any]:
    """Say large messages until the room is told that somebody left."""
    while True:
        await member.send(large(0))
        event: dict[str, Any] = {}
        while event.get("type") != "message":
            event = json.loads(await member.recv())
            if event["type"] == "left":
                return event


async def note(member: ClientConnection, heard: list[int]) -> None:
    """Note the numbers of the large messages, until the connection is closed."""
    async for text in member:
        event = json.loads(text)
        if event["type"] == "message":
            heard.append(int(event["text"].split()[0]))


async def silence(server: Server, heard: list[int], end: int) -> None:
    """Wait until `end` messages are heard, or no more come while others are served."""
    async with server.client() as client:
        before, answered = -1, 0
        while len(heard) < end and answered < PATIENCE:
            answered = answered + 1 if len(heard) == before else 0
            before = len(heard)
            await client.get("/openapi.json")


async def say(
    server: Server, member: ClientConnection, count: int, heard: list[int]
) -> None:
    """Say large messages until another has `heard` them, or no more come."""
    for number in range(count):
        await member.send(large(number))
        if number % 8 == 7:
            await silence(server, heard, number + 1)
    await silence(server, heard, count)


async def heard_beside_a_stalled_member(server: Server) -> int:
    heard: list[int] = []
    with raw_member(server) as stalled:
        async with join(server) as ann, join(server) as ben, TaskGroup() as tasks:
            listening = tasks.create_task(note(ben, heard))
            await say(server, ann, DROPS, heard)
            count = len(heard)
            reset(stalled)
            listening.cancel()
    return count


@pytest.mark.defect("D45", "D48")
async def test_a_member_that_does_not_read_stops_nobody(
    recipe: Server, serve: Serve
) -> None:
    naive = serve(NAIVE, strict=False, ws=f"{PINGS}:WhenFull")  # which frees no send
    assert await heard_beside_a_stalled_member(recipe) == DROPS
    assert await heard_beside_a_stalled_member(naive) < STALLS


async def test_a_member_that_does_not_read_leaves_a_silent_room(
    recipe: Server, serve: Serve
) -> None:
    impatient = serve("tests.behavior.websocket.impatient_rooms")
    with raw_member(impatient):
        async with join(impatient) as ann:
            await talk(ann, STALLS)
            await hear(ann, "left")
    with raw_member(recipe):  # which waits for 30 s
        async with join(recipe) as ann, TaskGroup() as tasks:
            await talk(ann, STALLS)
            left = tasks.create_task(hear(ann, "left"))
            await silence(recipe, [], 1)
            assert left.cancel()


async def served_after_a_member_died(server: Server) -> tuple[bool, bool]:
    """Whether the sender is still served, and whether the others heard the same."""
    first: list[int] = []
    last: list[int] = []
    served = False
    with ExitStack() as stack:
        async with join(server) as cat:
            stalled = stack.enter_context(raw_member(server))
            async with join(server) as ben, join(server) as ann, TaskGroup() as tasks:
                listening = (
                    tasks.create_task(note(cat, first)),
                    tasks.create_task(note(ben, last)),
                )
                await say(server, ann, STALLS, last)
                reset(stalled)
                with suppress(ConnectionClosed):
                    await ann.send("-1")
                    while (await hear(ann))["text"] != "-1":
                        pass
                    served = True
                await silence(server, last, STALLS + 1)
                await silence(server, first, len(last))
                for task in listening:
                    task.cancel()
    return served, first == last


@pytest.mark.defect("D44", "D50")
async def test_a_member_that_dies_takes_nobody_along(
    recipe: Server, naive: Server
) -> None:
    assert await served_after_a_member_died(recipe) == (True, True)
    assert "Traceback" not in recipe.log
    assert await served_after_a_member_died(naive) == (False, False)


async def missed_when_another_left(server: Server) -> list[int]:
    """What a member misses when an earlier one leaves in the middle of a broadcast."""
    heard: list[int] = []
    async with join(server) as bob, server.client() as client:
        with raw_member(server) as stalled:
            async with join(server) as dan, join(server) as ann, TaskGroup() as tasks:
                listening = tasks.create_task(note(dan, heard))
                await say(server, ann, STALLS, heard)
                await bob.close()
                await client.get("/openapi.json")  # by now the server knows
                last = f'"{STALLS - 1} '.encode()
                assert await asyncio.to_thread(reads_until, stalled, last)
                await silence(server, heard, STALLS)
                listening.cancel()
    return sorted(set(range(STALLS)) - set(heard))


@pytest.mark.defect("D46")
async def test_who_leaves_in_a_broadcast_hides_nobody(
    recipe: Server, naive: Server
) -> None:
    assert await missed_when_another_left(recipe) == []
    assert len(await missed_when_another_left(naive)) == 1


@pytest.mark.defect("D47")
async def test_a_member_that_is_dropped_and_then_dies_leaves_once(
    recipe: Server,
) -> None:
    manager = import_module(NAIVE).manager
    manager.connections["lobby"].append("socket")
    manager.disconnect("lobby", "socket")
    with pytest.raises(ValueError, match="not in list"):
        manager.disconnect("lobby", "socket")

    async with join(recipe) as ann:
        with raw_member(recipe) as stalled:
            dropped = await talk_until_left(ann)
            reset(stalled)
        async with join(recipe):
            pass
        another = await hear(ann, "left")
        assert another["member"] != dropped["member"]
        assert another["members"] == 1


async def test_a_dropped_member_that_reads_on_is_told_so(recipe: Server) -> None:
    async with join(recipe) as ann:
        with raw_member(recipe) as slow:
            await talk_until_left(ann)
            closing = struct.pack("!H", 1013) + b"too slow"
            assert await asyncio.to_thread(reads_until, slow, closing)


def burst(server: Server, count: int) -> None:
    """Clients that connect and reset at once."""
    for _ in range(count):
        raw = socket.create_connection(("127.0.0.1", server.port))
        raw.sendall(HANDSHAKE)
        reset(raw)


async def newcomer_is_served(server: Server) -> bool:
    with suppress(ConnectionClosed):
        async with join(server) as newcomer:
            await newcomer.send("hello")
            return bool((await hear(newcomer))["text"] == "hello")
    return False


@pytest.mark.defect("D49")
async def test_clients_that_reset_at_once_leave_no_zombies(
    recipe: Server, naive: Server
) -> None:
    bursts = (40, 100)
    for count in bursts:
        await asyncio.to_thread(burst, naive, count)
    assert not await newcomer_is_served(naive)

    async with join(recipe) as ann:
        for count in bursts:
            await asyncio.to_thread(burst, recipe, count)
        assert await newcomer_is_served(recipe)
        assert (await hear(ann))["text"] == "hello"
        while (await hear(ann, "left"))["members"] > 1:
            pass
    assert "Traceback" not in recipe.log


async def test_a_crowd_that_comes_talks_and_leaves_at_once_drops_nobody(
    recipe: Server,
) -> None:
    """The process stands still meanwhile, so it sees them all in one turn."""
    crowd = small_rooms.MAX_MEMBERS - 1
    async with join(recipe) as ann:
        with ExitStack() as stack:
            recipe.signal(signal.SIGSTOP)
            address = ("127.0.0.1", recipe.port)
            raws = [socket.create_connection(address, 20) for _ in range(crowd)]
            for raw in raws:
                stack.enter_context(raw)
                raw.sendall(HANDSHAKE)
            recipe.signal(signal.SIGCONT)
            for raw in raws:
                await asyncio.to_thread(opened, raw)
            recipe.signal(signal.SIGSTOP)
            for raw in raws:
                raw.sendall(frame("hello"))
                raw.shutdown(socket.SHUT_WR)
            recipe.signal(signal.SIGCONT)
            heard: list[str] = []
            while heard.count("left") < crowd:
                heard.append(json.loads(await ann.recv())["type"])
        assert heard.count("message") == crowd
        assert heard.count("joined") == crowd + 1


async def flood_before_a_word(server: Server, flood: int) -> int:
    """How much of another's flood is heard before a word that was said after it."""
    async with join(server) as ann, join(server) as ben:
        with raw_member(server) as raw:
            raw.sendall(flood * frame("flood"))
            assert (await hear(ben))["text"] == "flood"
            await ann.send("word")
            before = 1
            while (await hear(ben))["text"] == "flood":
                before += 1
            reset(raw)
        await hear(ben, "left")
    return before


async def test_a_flood_does_not_drown_the_others(recipe: Server, naive: Server) -> None:
    flood = 1000
    assert await flood_before_a_word(naive, flood) == flood
    assert await flood_before_a_word(recipe, flood) < flood


async def test_what_is_no_message_is_answered(recipe: Server) -> None:
    async with join(recipe) as ann, join(recipe) as ben:
        for bad in (b"binary", "", "x" * (small_rooms.MAX_MESSAGE + 1)):
            await ben.send(bad)
            assert (await hear(ben, "refused"))["limit"] == small_rooms.MAX_MESSAGE
        for text in (
            "hello",
            "\0\n\"'<b>",
            "\N{GRINNING FACE}" * small_rooms.MAX_MESSAGE,
        ):
            await ben.send(text)
            assert (await hear(ann))["text"] == text  # and nothing before it
        await ben.send("\N{GRINNING FACE}")
        assert "\N{GRINNING FACE}" in str(await ann.recv())  # not as \ud83d\ude00


async def test_a_binary_frame_kills_a_naive_socket(naive: Server) -> None:
    async with join(naive) as ann:
        await ann.send(b"binary")
        with pytest.raises(ConnectionClosed):
            await hear(ann)
    await asyncio.to_thread(naive.wait_for_log, "KeyError: 'text'")


async def test_more_than_uvicorn_takes_closes_its_sender_only(serve: Serve) -> None:
    server = serve(SMALL, ws_max_size=65536)
    async with join(server) as ann, join(server) as ben:
        await ben.send("x" * 65537)
        with pytest.raises(ConnectionClosed):
            await hear(ben)
        assert ben.close_code == 1009
        assert (await hear(ann, "left"))["members"] == 1


async def test_a_bad_room_name_is_refused(recipe: Server) -> None:
    for name in ("UPPER", "x" * 41, "%0A", "lobby%0A", "%F0%9F%98%80", "..%2Flobby"):
        with pytest.raises(InvalidStatus, match=r"HTTP 40[34]"):
            async with join(recipe, name):
                pass


async def is_full(server: Server, room: str) -> bool:
    async with join(server, room) as member:
        with suppress(ConnectionClosed):
            await hear(member, "joined")
            return False
    assert (member.close_code, member.close_reason) == (1013, "full")
    return True


async def test_a_room_has_so_many_seats(recipe: Server) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(small_rooms.MAX_MEMBERS):
            last = await stack.enter_async_context(join(recipe))
        assert await is_full(recipe, "lobby")
        assert not await is_full(recipe, "another")
        await last.close()
        while await is_full(recipe, "lobby"):
            pass


async def test_there_are_so_many_rooms_and_empty_ones_go(recipe: Server) -> None:
    async with AsyncExitStack() as stack:
        for number in range(small_rooms.MAX_ROOMS):
            await stack.enter_async_context(join(recipe, f"room-{number}"))
        assert await is_full(recipe, "another")
        assert not await is_full(recipe, "room-0")
    while await is_full(recipe, "another"):
        pass


async def test_a_member_that_answers_no_ping_takes_nobody_along(serve: Serve) -> None:
    """Unsent data keeps its connection, and `send` to it raises RuntimeError."""
    recipe = serve(SMALL, ws=f"{PINGS}:WhenUnread")
    async with join(recipe) as ann, join(recipe) as ben:
        with raw_member(recipe):
            await talk(ann, small_rooms.BACKLOG - STALLS)
            await ann.send("last")
            events = [json.loads(await ben.recv())]
            while events[-1].get("text") != "last":
                events.append(json.loads(await ben.recv()))
            assert "left" in [event["type"] for event in events]
    assert "Traceback" not in recipe.log

    naive = serve(NAIVE, strict=False, ws=f"{PINGS}:WhenUnread")
    async with join(naive) as ann:
        with raw_member(naive), pytest.raises(ConnectionClosed):
            await talk(ann, STALLS)
    assert "RuntimeError: Unexpected ASGI message" in naive.log


class Unsent:
    """In place of a WebSocket: the connection of a peer that answered no ping."""

    async def send_text(self, _: str) -> None:
        raise RuntimeError

    async def receive(self) -> None:
        await asyncio.Event().wait()


async def test_a_send_that_fails_ends_the_reading_too() -> None:
    member = rooms.Member(cast("WebSocket", Unsent()))
    rooms.broadcast({member}, small_rooms.EVENT)
    async with asyncio.timeout(20), member.tasks as tasks:
        tasks.start_soon(member.write)
        tasks.start_soon(member.read, {member})


async def test_a_route_can_broadcast(recipe: Server) -> None:
    async with join(recipe) as ann, recipe.client() as client:
        for path in ("/async-def", "/def"):
            assert (await client.post(path)).is_success
            assert await hear(ann, "saved") == small_rooms.EVENT


class Heard(Event):
    """In place of a WebSocket: what is sent sets it."""

    async def send_text(self, _: str) -> None:
        self.set()


async def test_a_direct_call_in_a_thread_does_not_wake_the_loop() -> None:
    """Nothing else wakes this loop: `wait` is in vain, however long it is."""
    heard = Heard()
    member = rooms.Member(cast("WebSocket", heard))

    def direct() -> bool:
        rooms.broadcast({member}, small_rooms.EVENT)
        return heard.wait(0.2)

    def right() -> bool:
        anyio.from_thread.run_sync(rooms.broadcast, {member}, small_rooms.EVENT)
        return heard.wait(20)

    async with member.tasks as tasks:
        tasks.start_soon(member.write)
        await asyncio.sleep(0)
        assert not await anyio.to_thread.run_sync(direct)
        await asyncio.to_thread(heard.wait, 20)
        heard.clear()
        assert await anyio.to_thread.run_sync(right)
        tasks.cancel_scope.cancel()


async def test_a_dependency_refuses_before_the_handshake(recipe: Server) -> None:
    url = f"{recipe.ws_url}/protected/lobby"
    with pytest.raises(InvalidStatus, match="HTTP 403"):
        async with connect(url):
            pass
    async with connect(url, additional_headers={"User": "ann"}) as ann:
        assert (await hear(ann, "joined"))["members"] == 1
    assert "ERROR" not in recipe.log  # as `HTTPException` would be


async def test_a_stop_is_told_and_a_stalled_member_holds_it_up(serve: Serve) -> None:
    unbounded = serve(SMALL, strict=False, timeout_graceful_shutdown=None)
    bounded = serve(SMALL, strict=False, timeout_graceful_shutdown=1)

    async def stop(server: Server) -> None:
        async with join(server) as ann:
            assert (await talk_until_left(ann))["members"] == 1  # but it is connected
            server.terminate()
            with pytest.raises(ConnectionClosed):
                await hear(ann, "nothing more")
            assert ann.close_code == 1012

    with raw_member(unbounded), raw_member(bounded):
        await asyncio.gather(stop(unbounded), stop(bounded))
        assert await asyncio.to_thread(bounded.wait) == -15
        waiting = "Waiting for connections to close"
        await asyncio.to_thread(unbounded.wait_for_log, waiting)
        assert unbounded.is_running
