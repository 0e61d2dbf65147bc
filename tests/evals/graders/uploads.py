"""Uploads: limits that hold while the bytes arrive, and names that cannot escape."""

import asyncio
import contextlib
import os
from pathlib import Path

import httpx2

from tests.evals.harness import Grader, check, until

LIMIT = 5 * 1024 * 1024
PATIENCE = 25 * 1024 * 1024
HEAD = (
    b"--x\r\nContent-Disposition: form-data; "
    b'name="file"; filename="big.bin"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n"
)


class Task(Grader):
    """See `uploads` in `evals.json`."""

    async def setup(self) -> None:
        """The folder for uploads, and next to it what nobody may read or replace."""
        self.uploads = self.folder / "var" / "uploads"
        self.uploads.mkdir(parents=True)
        self.secret = self.uploads.parent / "secret.txt"
        self.secret.write_text("keep out")
        self.env["UPLOAD_DIR"] = str(self.uploads)

    def kept(self) -> set[Path]:
        """What lies in the folder for uploads."""
        return {path for path in self.uploads.rglob("*") if path.is_file()}

    async def send(
        self, client: httpx2.AsyncClient, name: str, content: bytes
    ) -> httpx2.Response:
        """Upload one file."""
        return await client.post("/files", files={"file": (name, content)})

    async def head(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which an upload of unknown length has begun."""
        port = self.app.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /files HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + chunk(HEAD)
        )
        return reader, writer

    @check("A file comes back as it was sent")
    async def happy(self) -> None:
        content = os.urandom(3_000_000)
        async with self.app.client() as client:
            sent = await self.send(client, "holiday.jpg", content)
            assert sent.status_code == 201, f"201 expected, got {sent.status_code}"
            told = {"name": "holiday.jpg", "size": len(content)}
            assert sent.json().items() >= told.items(), f"got {sent.text[:100]}"
            read = await client.get(f"/files/{sent.json()['id']}")
            assert read.status_code == 200, f"reading it gives {read.status_code}"
            assert read.content == content, "other bytes come back"

    @check("Two files of the same name are both kept", trap=True)
    async def same_name(self) -> None:
        async with self.app.client() as client:
            sent = [await self.send(client, "same.txt", c) for c in (b"one", b"two")]
            ids = [answer.json()["id"] for answer in sent]
            read = [(await client.get(f"/files/{number}")).content for number in ids]
        assert read == [b"one", b"two"], f"they come back as {read}"

    @check("A hostile file name writes nothing outside the folder", trap=True)
    async def hostile(self) -> None:
        names = ["../secret.txt", "../../evil", str(self.folder / "evil"), "..", "a/b"]
        async with self.app.client() as client:
            for name in names:
                status = (await self.send(client, name, b"evil")).status_code
                assert status < 500, f"{name!r} is answered with {status}"
        assert self.secret.read_text() == "keep out", "a file outside is overwritten"
        assert not list(self.folder.rglob("evil")), "a file outside is written"

    @check("The limit is exact, and a file above it is not kept")
    async def limit(self) -> None:
        async with self.app.client() as client:
            fits = await self.send(client, "fits.bin", b"x" * LIMIT)
            assert fits.status_code == 201, f"the limit itself gives {fits.status_code}"
            before = self.kept()
            over = await self.send(client, "over.bin", b"x" * (LIMIT + 1))
            assert over.status_code == 413, f"a byte more gives {over.status_code}"
        await until(lambda: self.kept() == before, "what was refused is kept", 3)

    @check("An endless upload is refused while it still arrives", trap=True)
    async def endless(self) -> None:
        reader, writer = await self.head()
        answer = asyncio.ensure_future(reader.readline())
        sent = 0
        block = chunk(b"x" * 65536)
        with contextlib.suppress(ConnectionError):
            while not answer.done() and sent < PATIENCE:
                writer.write(block)
                await asyncio.wait_for(writer.drain(), 5)
                await asyncio.sleep(0)
                sent += len(block)
        with contextlib.suppress(TimeoutError, ConnectionError):
            await asyncio.wait_for(answer, 2)
        writer.transport.abort()
        status = answer.result() if answer.done() and not answer.cancelled() else b""
        message = f"after {sent >> 20} MiB the answer is {status!r}"
        assert b" 413" in status, message

    @check("An upload whose client disconnects leaves nothing behind")
    async def aborted(self) -> None:
        before = self.kept()
        reader, writer = await self.head()
        for _ in range(40):
            writer.write(chunk(b"x" * 65536))
            await writer.drain()
        await asyncio.sleep(0.3)
        writer.transport.abort()
        del reader
        async with self.app.client() as client:
            sent = await self.send(client, "next.txt", b"next")
        assert sent.status_code == 201, f"the next upload gives {sent.status_code}"
        message = "a part of the file is kept"
        await until(lambda: len(self.kept()) <= len(before) + 2, message, 3)
        sizes = {path.stat().st_size for path in self.kept() - before}
        assert all(size < 10_000 for size in sizes), message

    @check("A request without a file is answered with 422")
    async def missing(self) -> None:
        async with self.app.client() as client:
            for files in ({"other": ("a.txt", b"a")}, None):
                status = (await client.post("/files", files=files)).status_code
                assert status == 422, f"422 expected, got {status}"

    @check("An unknown id is not found, and no id reads other files")
    async def unknown(self) -> None:
        async with self.app.client() as client:
            status = (await client.get("/files/unknown")).status_code
            assert status in {404, 422}, f"an unknown id gives {status}"
            for path in ("%2e%2e%2fsecret.txt", "..%2Fsecret.txt", "%2e%2e", "%00"):
                answer = await client.get(f"/files/{path}")
                assert 400 <= answer.status_code < 500, f"{path}: {answer.status_code}"


def chunk(content: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(content), content)
