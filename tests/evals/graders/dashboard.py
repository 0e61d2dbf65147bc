"""A page from three services, of which each may fail in its own way."""

import asyncio
import json
import time
from functools import partial
from urllib.parse import unquote

from tests.evals.harness import Asked, Grader, Reply, Upstream, check, until

NAMES = ("orders", "profile", "tips")
SLACK = 4.5  # 2 s are promised; the rest is for a busy machine


class Task(Grader):
    """See `dashboard` in `evals.json`; a user's name says how the services behave."""

    async def setup(self) -> None:
        """Three services."""
        self.services: dict[str, Upstream] = {}
        for name in NAMES:
            service = Upstream(partial(self._answer, name))
            self.services[name] = await self.stack.enter_async_context(service)
            self.env[f"{name.upper()}_URL"] = service.url
        self.arrived: set[str] = set()

    async def _answer(self, name: str, asked: Asked) -> Reply:
        user = unquote(asked.path).lstrip("/")
        if user == "together":
            self.arrived.add(name)
            while len(self.arrived) < len(NAMES):
                await asyncio.sleep(0.01)
        if user in {f"hang-{name}", "hang-all"}:
            await asyncio.Event().wait()
        if user in {f"drip-{name}", "drip-all"}:
            return Reply(b"{", drip=True)
        if user in {f"error-{name}", "error-all"}:
            return Reply(b'{"detail": "no"}', 500)
        if user == f"junk-{name}":
            return Reply(b"<html>", content_type="text/html")
        if user == f"gone-{name}":
            return Reply(b'{"detail": "not found"}', 404)
        return Reply(json.dumps({"service": name, "user": user}).encode())

    async def page(self, user: str, *failed: str) -> None:
        """Get a page on which these services are missing, in time."""
        async with self.app.client(timeout=SLACK + 1) as client:
            started = time.monotonic()
            answer = await client.get(f"/dashboard/{user}")
            seconds = time.monotonic() - started
        expected: dict[str, object] = {
            name: None if name in failed else {"service": name, "user": user}
            for name in NAMES
        }
        expected["failed"] = sorted(failed)
        assert answer.status_code == 200, f"{user}: got {answer.status_code}"
        assert answer.json() == expected, f"{user}: got {answer.text[:150]}"
        assert seconds < SLACK, f"{user}: the answer took {seconds:.1f} s"

    @check("The page holds what the three services say")
    async def happy(self) -> None:
        await self.page("ann")

    @check("The services are asked at the same time", trap=True)
    async def together(self) -> None:
        await self.page("together")

    @check("A service that fails is named, and the others are there")
    async def failing(self) -> None:
        await self.page("error-orders", "orders")
        await self.page("junk-tips", "tips")
        await self.page("gone-profile", "profile")

    @check("A service that hangs does not hold up the page", trap=True)
    async def hanging(self) -> None:
        await self.page("hang-tips", "tips")

    @check("A service that sends a byte now and then does not hold up the page")
    async def dripping(self) -> None:
        await self.page("drip-profile", "profile")

    @check("A call that comes too late is given up")
    async def given_up(self) -> None:
        service = self.services["orders"]
        service.reset()
        await self.page("hang-orders", "orders")
        await until(lambda: service.abandoned, "the call is still open", 4)

    @check("If all services fail or hang the answer is 502")
    async def all_down(self) -> None:
        async with self.app.client(timeout=SLACK + 1) as client:
            for user in ("error-all", "hang-all"):
                started = time.monotonic()
                status = (await client.get(f"/dashboard/{user}")).status_code
                assert status == 502, f"{user}: got {status}"
                seconds = time.monotonic() - started
                assert seconds < SLACK, f"{user}: the answer took {seconds:.1f} s"

    @check("The name of a user cannot change what is asked for", trap=True)
    async def quoting(self) -> None:
        async with self.app.client() as client:
            for sent, user in (("who%3F", "who?"), ("%231%20fan", "#1 fan")):
                for service in self.services.values():
                    service.reset()
                status = (await client.get(f"/dashboard/{sent}")).status_code
                assert status == 200, f"{user}: got {status}"
                for service in self.services.values():
                    paths = [asked.path for asked in service.calls]
                    assert len(paths) == 1, f"{user}: asked for {paths}"
                    plain = "?" not in paths[0] and unquote(paths[0]) == f"/{user}"
                    assert plain, f"{user}: asked for {paths}"

    @check("Connections to the services are used again", trap=True)
    async def pooled(self) -> None:
        for service in self.services.values():
            service.reset()
        async with self.app.client() as client:
            for _ in range(20):
                await client.get("/dashboard/ann")
        most = max(service.connections for service in self.services.values())
        assert most <= 5, f"{most} connections for 20 pages, one after the other"
