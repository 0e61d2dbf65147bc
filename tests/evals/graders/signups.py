"""A confirmation that follows each sign-up, whatever happens in between."""

import asyncio
import json
from collections import Counter
from typing import ClassVar

from tests.evals.harness import App, Asked, Grader, Reply, Upstream, check, until


class Task(Grader):
    """See `signups` in `evals.json`; the part before the @ says how mail behaves."""

    needs: ClassVar = ("DATABASE_URL",)

    async def setup(self) -> None:
        """A mail service that can be down."""
        self.down = False
        self.delivered: list[tuple[str, str]] = []
        self.mail = await self.stack.enter_async_context(Upstream(self._mail))
        self.env["MAIL_URL"] = self.mail.url

    async def _mail(self, asked: Asked) -> Reply:
        to = json.loads(asked.body)["to"]
        key = asked.headers.get("idempotency-key", "")
        if self.down or to.startswith("hang"):
            await asyncio.Event().wait()
        if to.startswith("never"):
            return Reply(status=422)
        if to.startswith("retry") and len(self.attempts(to)) < 4:
            return Reply(status=503)
        self.delivered.append((to, key))
        return Reply(status=202)

    def attempts(self, to: str) -> list[Asked]:
        """All calls of the mail service for one address."""
        return [
            asked for asked in self.mail.calls if json.loads(asked.body)["to"] == to
        ]

    async def sign_up(self, name: str, app: App | None = None) -> int:
        """Sign up; the status."""
        async with (app or self.app).client(timeout=5) as client:
            body = {"email": f"{name}@example.com"}
            return (await client.post("/signups", json=body)).status_code

    async def arrives(self, name: str) -> None:
        """Wait for the mail."""
        email = f"{name}@example.com"
        message = f"there is no mail for {name}"
        await until(lambda: any(to == email for to, _ in self.delivered), message, 10)

    @check("A sign-up is answered with 202, and the mail arrives")
    async def happy(self) -> None:
        status = await self.sign_up("ann")
        assert status == 202, f"202 expected, got {status}"
        await self.arrives("ann")
        paths = {(asked.method, asked.path) for asked in self.mail.calls}
        assert paths == {("POST", "/send")}, f"the mail service was asked {paths}"

    @check("A bad address is a 422, a known one a 409, without a mail")
    async def refused(self) -> None:
        await self.sign_up("twice")
        status = await self.sign_up("twice")
        assert status == 409, f"a known address is answered with {status}"
        async with self.app.client() as client:
            for body in ({"email": "no address"}, {}):
                status = (await client.post("/signups", json=body)).status_code
                assert status == 422, f"{body} is answered with {status}"
        await self.arrives("twice")
        await self.sign_up("after")
        await self.arrives("after")
        assert len(self.attempts("twice@example.com")) == 1, "it got two mails"

    @check("Of 10 equal sign-ups at once one is accepted, and gets one mail")
    async def race(self) -> None:
        codes = await asyncio.gather(*(self.sign_up("race") for _ in range(10)))
        expected = [202] + [409] * 9
        assert sorted(codes) == expected, f"answered with {sorted(codes)}"
        await self.arrives("race")
        await self.sign_up("next")
        await self.arrives("next")
        assert len(self.attempts("race@example.com")) == 1, "it got several mails"

    @check("A mail that fails is tried again, with the same key", trap=True)
    async def retried(self) -> None:
        assert await self.sign_up("retry") == 202
        await self.arrives("retry")
        tried = self.attempts("retry@example.com")
        keys = {asked.headers.get("idempotency-key") for asked in tried}
        assert len(keys) == 1, f"it was tried with {keys}"
        assert None not in keys, "there is no key"

    @check("A mail that hangs or is refused for good does not hold up others")
    async def poison(self) -> None:
        for name in ("hang", "never", "fine-1", "fine-2"):
            status = await self.sign_up(name)
            assert status == 202, f"202 expected, got {status}"
        await self.arrives("fine-1")
        await self.arrives("fine-2")
        tried = len(self.attempts("never@example.com"))
        assert tried == 1, f"what is refused for good was tried {tried} times"

    @check("A crash after the 202 does not lose the mail", trap=True)
    async def crash(self) -> None:
        first = await self.start()
        self.down = True
        status = await self.sign_up("crash", first)
        first.kill()
        self.down = False
        assert status == 202, f"while mail hangs a sign-up is answered with {status}"
        await self.start()
        await self.arrives("crash")

    @check("A deploy ends in 10 seconds while mail hangs, and loses none", trap=True)
    async def deploy(self) -> None:
        self.down = True
        try:
            codes = {await self.sign_up(f"deploy-{n}") for n in range(3)}
            assert codes == {202}, f"answered with {codes}"
            self.app.terminate()
            assert await self.app.ended(10), "it still runs 10 s after SIGTERM"
        finally:
            self.down = False
        await self.start()
        for number in range(3):
            await self.arrives(f"deploy-{number}")

    @check("Two copies of the service send each mail once")
    async def copies(self) -> None:
        other = await self.start()
        names = [f"copy-{number}" for number in range(30)]
        signing = (
            self.sign_up(name, app)
            for name, app in zip(names, [self.app, other] * 15, strict=True)
        )
        codes = set(await asyncio.gather(*signing))
        assert codes == {202}, f"answered with {codes}"
        for name in names:
            await self.arrives(name)
        counts = Counter(to for to, _ in self.delivered)
        twice = [to for to, count in counts.items() if count > 1 and "copy" in to]
        assert not twice, f"{len(twice)} got it twice"
