"""Downloads under any name that a person may choose, and of nothing else."""

import os
import re
from urllib.parse import quote, unquote

import httpx2

from tests.evals.harness import Grader, check

BIG = 300_000_000
NAMES = ["year 2026/Q1 report.pdf", "Zoë & Ömer 100%.txt", "日本.txt", "a;b=c.txt"]


class Task(Grader):
    """See `downloads` in `evals.json`."""

    async def setup(self) -> None:
        """Files to serve, and others next to them."""
        self.files = self.folder / "files"
        private = self.folder / "files-private"
        for folder in (self.files / "year 2026", private):
            folder.mkdir(parents=True)
        (private / "secret.txt").write_text("secret")
        (self.folder / "secret.txt").write_text("secret")
        self.content = os.urandom(200_000)
        for name in NAMES:
            (self.files / name).write_bytes(self.content)
        (self.files / "link.txt").symlink_to(private / "secret.txt")
        (self.files / "empty.txt").touch()
        with (self.files / "big.bin").open("wb") as file:
            file.truncate(BIG)  # takes no space on the disk
        self.env["FILES_DIR"] = str(self.files)

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        """Ask for an encoded path, as it is."""
        async with self.app.client() as client:
            url = f"{self.app.url}/files/{path}"
            return await client.get(url, headers=headers)

    @check("A file comes as it is, with its length, from a subfolder too")
    async def happy(self) -> None:
        answer = await self.get(quote(NAMES[0]))
        assert answer.status_code == 200, f"200 expected, got {answer.status_code}"
        assert answer.content == self.content, "other bytes come"
        length = answer.headers.get("content-length")
        assert length == str(len(self.content)), f"Content-Length is {length}"
        empty = await self.get("empty.txt")
        got = (empty.status_code, empty.content)
        assert got == (200, b""), f"an empty file gives {got}"

    @check("The browser saves it under its own name, whatever that is", trap=True)
    async def names(self) -> None:
        for name in NAMES:
            answer = await self.get(quote(name))
            assert answer.status_code == 200, f"{name} gives {answer.status_code}"
            header = answer.headers.get("content-disposition", "")
            found = saved_as(header)
            assert found == name.rpartition("/")[2], f"{name} is saved as {found!r}"

    @check("Nothing outside the folder can be read", trap=True)
    async def outside(self) -> None:
        for path in (
            "..%2Fsecret.txt",
            "%2E%2E/secret.txt",
            "year%202026/..%2F..%2Fsecret.txt",
            "..%2Ffiles-private%2Fsecret.txt",
            f"{quote(str(self.folder), safe='')}%2Fsecret.txt",
            f"/{str(self.folder).lstrip('/')}/secret.txt",
        ):
            answer = await self.get(path)
            leaked = answer.content == b"secret"
            assert not leaked, f"{path} gives a file outside"
            assert 400 <= answer.status_code < 500, f"{path}: {answer.status_code}"

    @check("A link in the folder does not lead out of it", trap=True)
    async def link(self) -> None:
        answer = await self.get("link.txt")
        assert answer.status_code == 404, f"404 expected, got {answer.status_code}"

    @check("What cannot be a file is not found, and is no server error", trap=True)
    async def missing(self) -> None:
        long = "x" * 300
        for path in ("none.txt", "year%202026", "%00", "a%00b", long):
            status = (await self.get(path)).status_code
            known = {400, 404, 422} if "%00" in path or path == long else {404}
            assert status in known, f"{path[:20]!r} gives {status}"

    @check("A download that broke off can be resumed", trap=True)
    async def ranges(self) -> None:
        path = quote(NAMES[2])
        size = len(self.content)
        answer = await self.get(path, Range=f"bytes={size - 100}-")
        assert answer.status_code == 206, f"206 expected, got {answer.status_code}"
        assert answer.content == self.content[-100:], "other bytes come"
        told = answer.headers.get("content-range")
        expected = f"bytes {size - 100}-{size - 1}/{size}"
        assert told == expected, f"Content-Range is {told}"
        status = (await self.get(path, Range=f"bytes={size}-")).status_code
        assert status == 416, f"a range behind the end gives {status}"

    @check("A large file takes little memory, however slow its reader", trap=True)
    async def large(self) -> None:
        before = self.app.memory()
        async with self.app.client() as client:
            async with client.stream("GET", "/files/big.bin") as response:
                assert response.status_code == 200, f"got {response.status_code}"
                size = int(response.headers["content-length"])
                assert size == BIG, f"Content-Length is {size}"
                chunks = response.aiter_raw()
                for _ in range(20):
                    await anext(chunks)
                grown = self.app.memory() - before
        assert grown < BIG / 4, f"it takes {grown >> 20} MiB"


def saved_as(header: str) -> str | None:
    """The name under which a browser saves what comes with this header."""
    assert header.startswith("attachment"), f"Content-Disposition is {header!r}"
    if found := re.search(r"filename\*=utf-8''([^;\s]+)", header, re.IGNORECASE):
        return unquote(found[1])
    if found := re.search(r'filename="((?:[^"\\]|\\.)*)"', header):
        return re.sub(r"\\(.)", r"\1", found[1])
    if found := re.search(r"filename=([^;\s]+)", header):
        return found[1]
    return None
