"""Sockets that open with a ticket, once, and do not outlive their session."""

import asyncio
import json

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tests.evals.harness import App, Grader, check, receive

ORIGIN = "https://app.example.com"
USERS = {"ann": "token-of-ann", "bob": "token-of-bob"}
ENDED = 4401


class Task(Grader):
    """See `tickets` in `evals.json`."""

    async def setup(self) -> None:
        """Two users and one origin."""
        self.env["API_TOKENS"] = ",".join(f"{u}:{token}" for u, token in USERS.items())
        self.env["ALLOWED_ORIGIN"] = ORIGIN

    async def ticket(self, app: App, user: str = "ann") -> str:
        """A new ticket."""
        headers = {"Authorization": f"Bearer {USERS[user]}"}
        async with app.client() as client:
            answer = await client.post("/tickets", headers=headers)
        assert answer.status_code == 201, f"a ticket is answered with {answer}"
        return str(answer.json()["ticket"])

    async def opens(self, app: App, query: str, origin: str | None = None) -> bool:
        """Whether such a socket is accepted; refused ones must say 401 or 403."""
        try:
            async with app.websocket(f"/live{query}", origin=origin):
                return True
        except InvalidStatus as error:
            status = error.response.status_code
            assert status in {401, 403}, f"it is refused with {status}"
        except (InvalidHandshake, ConnectionError, EOFError) as error:
            raise AssertionError(f"the handshake breaks: {error}") from None
        return False

    @check("A ticket opens a socket that knows its user")
    async def happy(self) -> None:
        for user in USERS:
            ticket = await self.ticket(self.app, user)
            async with self.app.websocket(f"/live?ticket={ticket}") as socket:
                hello = await receive(socket, "there is no first message")
                assert hello == {"user": user}, f"got {hello}"
                for text in ("one", "zwölf"):
                    await socket.send(text)
                    echo = await receive(socket, "there is no echo")
                    assert echo == {"user": user, "echo": text}, f"got {echo}"

    @check("Without a valid token there is no ticket, whatever it looks like")
    async def bad_token(self) -> None:
        bad = ["", "Bearer", "Bearer wrong", "Basic token-of-ann", "Bearer é"]
        async with self.app.client() as client:
            codes = {(await client.post("/tickets")).status_code}
            for value in bad:
                headers = [(b"Authorization", value.encode("latin-1"))]
                answer = await client.post("/tickets", headers=headers)
                codes.add(answer.status_code)
        assert codes == {401}, f"401 expected, got {codes}"

    @check("Without a valid ticket the socket is not even opened", trap=True)
    async def refused(self) -> None:
        for query in ("", "?ticket=", "?ticket=unknown", f"?ticket={'x' * 4000}"):
            assert not await self.opens(self.app, query), f"{query[:20]!r} opens it"

    @check("A ticket is good for one socket only, also at the same time", trap=True)
    async def once(self) -> None:
        query = f"?ticket={await self.ticket(self.app)}"
        assert await self.opens(self.app, query), "it does not open a socket"
        assert not await self.opens(self.app, query), "it opens a second one"
        query = f"?ticket={await self.ticket(self.app)}"
        opened = await asyncio.gather(*(self.opens(self.app, query) for _ in range(8)))
        assert sum(opened) == 1, f"of 8 at once {sum(opened)} are opened"

    @check("A page of another origin is refused, other programs are not", trap=True)
    async def origin(self) -> None:
        for origin, expected in (
            (ORIGIN, True),
            (None, True),
            ("https://evil.example", False),
            (f"{ORIGIN}.evil.example", False),
            ("null", False),
        ):
            query = f"?ticket={await self.ticket(self.app)}"
            opened = await self.opens(self.app, query, origin)
            assert opened == expected, f"{origin} is {'accepted' * opened or 'refused'}"

    @check("Tickets and sessions end after their time, busy or not", trap=True)
    async def expiry(self) -> None:
        app = await self.start(TICKET_SECONDS="1", SESSION_SECONDS="2")
        old = await self.ticket(app)
        tickets = [await self.ticket(app) for _ in range(2)]
        silent = app.websocket(f"/live?ticket={tickets[0]}")
        busy = app.websocket(f"/live?ticket={tickets[1]}")
        async with silent as one, busy as two:
            codes = await asyncio.gather(closed(one), closed(two, talk=True))
        assert set(codes) == {ENDED}, f"the sessions end with {codes}"
        assert not await self.opens(app, f"?ticket={old}"), "an old ticket opens it"

    @check("Ending the sessions of a user closes all of them at once")
    async def revoked(self) -> None:
        tickets = [await self.ticket(self.app, user) for user in ("ann", "ann", "bob")]
        headers = {"Authorization": f"Bearer {USERS['ann']}"}
        sockets = [self.app.websocket(f"/live?ticket={ticket}") for ticket in tickets]
        async with sockets[0] as one, sockets[1] as two, sockets[2] as other:
            for socket in (one, two, other):
                await receive(socket, "there is no first message")
            async with self.app.client() as client:
                status = (await client.delete("/sessions")).status_code
                assert status == 401, f"without a token it is {status}"
                status = (await client.delete("/sessions", headers=headers)).status_code
            assert status == 204, f"204 expected, got {status}"
            codes = await asyncio.gather(closed(one), closed(two))
            assert set(codes) == {ENDED}, f"the sessions end with {codes}"
            await other.send("still here?")
            echo = await receive(other, "another user's session is closed too")
            assert echo["echo"] == "still here?", f"got {echo}"


async def closed(socket: ClientConnection, *, talk: bool = False) -> int | None:
    """The code with which the server closes it."""
    try:
        async with asyncio.timeout(6):
            while True:
                if talk:
                    await socket.send(json.dumps("busy"))
                    await asyncio.sleep(0.1)
                await socket.recv()
    except ConnectionClosed as error:
        return error.rcvd.code if error.rcvd else None
    except TimeoutError:
        raise AssertionError("a session does not end") from None
