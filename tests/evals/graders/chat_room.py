"""A chat room in which one bad member harms nobody else."""

import asyncio
import contextlib
import json
import socket
import struct

from websockets.asyncio.client import ClientConnection

from tests.evals.harness import Grader, check, receive

BAD: list[str | bytes] = [
    "{oops",
    "[1]",
    "5",
    '{"text": 5}',
    '{"text": ""}',
    "{}",
    b"\xff\x00",
]
LONG = 4000  # characters
FLOOD = 500
BURST = 30


class Task(Grader):
    """See `chat_room` in `evals.json`."""

    async def raw(self, room: str, name: str) -> asyncio.StreamWriter:
        """A member that has joined and does not read."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)  # noqa: FBT003 - its only argument
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", self.app.port))
        reader, writer = await asyncio.open_connection(sock=connection)
        writer.write(
            f"GET /rooms/{room}?name={name} HTTP/1.1\r\nHost: localhost\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        status = await reader.readline()
        assert b" 101 " in status, f"joining is answered with {status!r}"
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        return writer

    async def members(self, room: str, expected: list[str]) -> None:
        """Wait until the room has these members."""
        found: object = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5), self.app.client() as client:
                while found != {"members": expected}:
                    found = (await client.get(f"/rooms/{room}")).json()
                    await asyncio.sleep(0.05)
        assert found == {"members": expected}, f"{expected} expected, got {found}"

    @check("A message reaches every member, its sender too, in order")
    async def happy(self) -> None:
        ann = self.app.websocket("/rooms/happy?name=ann")
        bob = self.app.websocket("/rooms/happy?name=bob")
        async with ann as one, bob as two:
            await self.members("happy", ["ann", "bob"])
            for text in ("first", "second", "zwölf 🎉"):
                await say(one, text)
            for member in (one, two):
                for text in ("first", "second", "zwölf 🎉"):
                    found = await receive(member, "a message did not arrive")
                    assert found == {"from": "ann", "text": text}, f"got {found}"

    @check("Rooms do not hear each other")
    async def separate(self) -> None:
        here = self.app.websocket("/rooms/here?name=ann")
        there = self.app.websocket("/rooms/there?name=bob")
        async with here as one, there as two:
            await self.members("there", ["bob"])
            await say(one, "psst")
            await receive(one, "a message did not arrive")
            await say(two, "mine")
            found = await receive(two, "a message did not arrive")
            assert found["text"] == "mine", f"the other room heard {found}"

    @check("A bad message gets an error, and its sender can go on", trap=True)
    async def bad_input(self) -> None:
        ann = self.app.websocket("/rooms/bad?name=ann")
        bob = self.app.websocket("/rooms/bad?name=bob")
        async with ann as one, bob as two:
            await self.members("bad", ["ann", "bob"])
            for bad in [*BAD, json.dumps({"text": "x" * (LONG + 1)})]:
                await one.send(bad)
                found = await receive(one, f"no answer to {bad[:20]!r}")
                assert "error" in found, f"{bad[:20]!r} is answered with {found}"
            await say(one, "x" * LONG)
            for member in (one, two):
                found = await receive(member, "the next message did not arrive")
                assert found.get("text") == "x" * LONG, f"got {str(found)[:80]}"

    @check("A member who leaves or vanishes is no longer listed")
    async def leaving(self) -> None:
        async with self.app.websocket("/rooms/leave?name=ann") as ann:
            async with self.app.websocket("/rooms/leave?name=bob"):
                vanishing = await self.raw("leave", "carl")
                await self.members("leave", ["ann", "bob", "carl"])
                reset(vanishing)
                await self.members("leave", ["ann", "bob"])
            await self.members("leave", ["ann"])
            await say(ann, "alone")
            found = await receive(ann, "the one who stays gets no message")
            assert found["text"] == "alone", f"got {found}"

    @check("A crowd that connects and vanishes does not break the room")
    async def burst(self) -> None:
        async with self.app.websocket("/rooms/burst?name=ann") as ann:
            for _ in range(3):
                joining = (self.raw("burst", f"n{n}") for n in range(BURST))
                crowd = await asyncio.gather(*joining)
                await say(ann, "hello")
                for member in crowd:
                    reset(member)
                await say(ann, "hello again")
                for _ in range(2):
                    await receive(ann, "a message did not arrive")
            await self.members("burst", ["ann"])

    @check("A member who does not read does not delay the others", trap=True)
    async def stalled(self) -> None:
        ann = self.app.websocket("/rooms/stall?name=ann")
        bob = self.app.websocket("/rooms/stall?name=bob")
        stalled = await self.raw("stall", "aaa")
        try:
            async with ann as one, bob as two:
                await self.members("stall", ["aaa", "ann", "bob"])
                for number in range(FLOOD):  # 8 MB, more than sockets hold
                    await say(one, "🎉" * LONG)
                    for member in (one, two):
                        message = f"nothing arrives after {number} messages"
                        await receive(member, message)
        finally:
            stalled.transport.abort()

    @check("It stops within 10 seconds of SIGTERM while members are connected")
    async def stop(self) -> None:
        app = await self.start()
        async with app.websocket("/rooms/stop?name=ann"):
            app.terminate()
            assert await app.ended(10), "it still runs"


async def say(member: ClientConnection, text: str) -> None:
    """Send a message to the room."""
    await member.send(json.dumps({"text": text}, ensure_ascii=False))


def reset(writer: asyncio.StreamWriter) -> None:
    """Vanish without a goodbye."""
    connection = writer.get_extra_info("socket")
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()
