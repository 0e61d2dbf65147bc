"""streaming/download: the file that was meant, whole or in parts, or an honest 404."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from fastapi.testclient import TestClient

from recipes.streaming import download
from recipes.streaming.download import find
from tests.conftest import Serve
from tests.harness.served import Options
from tests.harness.server import Server

RECIPE = "recipes.streaming.download"
NAIVE = "tests.behavior.streaming.naive_download"
TEXT = b"0123456789" * 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files in it, and what must not leave it."""
    found = tmp_path_factory.mktemp("download") / "outer" / "files"
    (found / "sub").mkdir(parents=True)
    (found / "text.txt").write_bytes(TEXT)
    (found / "sub" / "inner.txt").write_bytes(b"inner")
    (found / "empty").touch()
    (found.parent / "secret.txt").write_bytes(b"secret")
    (found.parent / "files-2").mkdir()
    (found.parent / "files-2" / "secret.txt").write_bytes(b"secret")
    (found / "out").symlink_to(found.parent / "secret.txt")
    (found / "out-dir").symlink_to(found.parent)
    (found / "in").symlink_to("text.txt")
    (found / "circle").symlink_to("circle")
    os.mkfifo(found / "fifo")
    return found


@contextmanager
def serving(target: str, folder: Path, *, strict: bool) -> Iterator[Server]:
    log = folder.parent / f"{target}.log"
    server = Server(Options(target, log, {"DOWNLOAD_DIR": str(folder)}, strict))
    try:
        yield server
        troubles = server.stop()
        assert not strict or troubles == []
    finally:
        server.kill()


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Iterator[Server]:
    with serving(RECIPE, folder, strict=True) as server:
        yield server


@pytest.fixture(scope="module")
def naive(folder: Path) -> Iterator[Server]:
    with serving(NAIVE, folder, strict=False) as server:
        yield server


def url(name: str) -> str:
    """All of it encoded: a client would resolve `..` itself."""
    return "/files/" + "".join(f"%{byte:02X}" for byte in os.fsencode(name))


async def get(server: Server, name: str, **headers: str) -> httpx2.Response:
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    async with server.client() as client:
        return await client.get(url(name), headers=headers)


async def breaks_off(server: Server, name: str) -> bool:
    """Whether the response is a 200 that is not complete."""
    async with server.client() as client:
        async with client.stream("GET", url(name)) as response:
            assert response.status_code == 200
            try:
                await response.aread()
            except httpx2.RemoteProtocolError:
                return True
    return False


def saved_as(response: httpx2.Response) -> str:
    """The name that a browser gives the file: `filename*` wins."""
    message = Message()
    message["Content-Disposition"] = response.headers["Content-Disposition"]
    parameters = message.get_params(header="Content-Disposition") or []
    *_, found = (value for key, value in parameters if key == "filename")
    return str(found[2] if isinstance(found, tuple) else found)


@pytest.mark.defect("D59")
async def test_no_file_is_read_in_the_event_loop(
    recipe: Server, serve: Serve, folder: Path
) -> None:
    strict = serve(NAIVE, env={"DOWNLOAD_DIR": str(folder)}, strict=True)
    assert (await get(recipe, "text.txt")).content == TEXT
    assert await breaks_off(strict, "text.txt")
    strict.wait_for_log("Blocking call to io.BufferedReader.read")
    assert (await get(recipe, "fifo")).status_code == 404  # its open would wait


@pytest.mark.defect("D60")
async def test_what_is_no_file_is_a_404_and_not_half_a_200(
    recipe: Server, naive: Server
) -> None:
    for name in ("missing.txt", "..", "sub"):
        assert await breaks_off(naive, name)
        assert (await get(recipe, name)).status_code == 404


async def test_nothing_leaves_the_folder(
    recipe: Server, naive: Server, folder: Path
) -> None:
    secrets = ["../secret.txt", "out", "out-dir/secret.txt", "sub/../../secret.txt"]
    secrets += [str(folder.parent / "secret.txt"), "../files-2/secret.txt"]
    others = ["", ".", "/", "sub", "circle", "fifo", "text.txt/x", "a\0b", "a\r\nb"]
    others += [
        "a" * 300,
        "a/" * 3000,
        "..%2fsecret.txt",
        "..\\secret.txt",
        "/dev/zero",
        "\udcff",
    ]
    for name in secrets + others:
        response = await get(recipe, name)
        assert response.status_code == 404, name
        assert b"secret" not in response.content
    assert (await get(naive, "../secret.txt")).content == b"secret"
    for name in ("sub/inner.txt", "sub/../text.txt", "in"):
        assert (await get(recipe, name)).is_success


@pytest.mark.defect("D61")
async def test_a_name_adds_no_parameter(
    recipe: Server, naive: Server, folder: Path
) -> None:
    name = "report.pdf; filename*=UTF-8''evil.exe"
    (folder / name).write_bytes(b"x")
    (folder / 'a"b\\c.txt').write_bytes(b"x")
    assert saved_as(await get(naive, name)) == "evil.exe"
    for one in (name, 'a"b\\c.txt', "text.txt"):
        response = await get(recipe, one)
        assert saved_as(response) == one
        assert response.headers["Content-Disposition"].startswith("attachment; ")
        assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.defect("D62", "D63")
async def test_any_name_can_be_sent(
    recipe: Server, naive: Server, folder: Path
) -> None:
    for name in ("a\rSet-Cookie: b=c", "prices in €.txt"):
        (folder / name).write_bytes(b"x")
        response = await get(recipe, name)
        assert response.content == b"x"
        assert response.headers["Content-Disposition"].endswith(quote(name))
        assert "Set-Cookie" not in response.headers
    with pytest.raises(httpx2.RemoteProtocolError):
        await get(naive, "a\rSet-Cookie: b=c")
    assert (await get(naive, "prices in €.txt")).status_code == 500


@pytest.mark.defect("D64")
async def test_a_download_resumes(recipe: Server, naive: Server, folder: Path) -> None:
    whole = await get(naive, "text.txt", Range="bytes=0-9")
    assert (whole.status_code, len(whole.content)) == (200, len(TEXT))
    assert not {"etag", "content-length", "accept-ranges"} & set(whole.headers)

    part = await get(recipe, "text.txt", Range="bytes=10-19")
    assert (part.status_code, part.content) == (206, TEXT[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(TEXT)}"
    last = await get(recipe, "text.txt", Range="bytes=-5")
    assert (last.status_code, last.content) == (206, TEXT[-5:])
    for name, beyond in ("text.txt", len(TEXT)), ("empty", 0):
        refused = await get(recipe, name, Range=f"bytes={beyond}-")
        assert refused.status_code == 416
        assert refused.headers["Content-Range"] == f"bytes */{beyond}"

    (folder / "renewed").write_bytes(TEXT)
    etag = (await get(recipe, "renewed")).headers["ETag"]
    same = await get(recipe, "renewed", Range="bytes=10-", If_Range=etag)
    assert (same.status_code, same.content) == (206, TEXT[10:])
    new = folder / "new"
    new.write_bytes(b"new content")
    new.replace(folder / "renewed")
    other = await get(recipe, "renewed", Range="bytes=10-", If_Range=etag)
    assert (other.status_code, other.content) == (200, b"new content")


async def test_many_ranges_send_each_byte_once(recipe: Server) -> None:
    for count, status in (100, 206), (101, 200):
        ranges = "bytes=" + ",".join(f"{start}-" for start in range(count))
        response = await get(recipe, "text.txt", Range=ranges)
        assert response.status_code == status
        assert len(response.content) < len(TEXT) + 500
    for bad in ("bytes=", "bytes=x-y", "lines=1-2", "bytes=" + "9" * 5000 + "-"):
        assert (await get(recipe, "text.txt", Range=bad)).status_code == 400


def test_what_may_not_be_read_is_not_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(folder, "text.txt") == folder / "text.txt"
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    assert find(folder, "text.txt") is None


async def test_head_tells_the_length(recipe: Server) -> None:
    async with recipe.client() as client:
        response = await client.head("/files/text.txt")
        assert response.headers["Content-Length"] == str(len(TEXT))
        assert response.content == b""
        assert (await client.head("/files/fifo")).status_code == 404


async def test_a_file_that_is_cut_or_replaced_while_it_is_sent(
    recipe: Server, folder: Path
) -> None:
    size = 16 << 20  # more than the buffers of the sockets hold
    for cut in (True, False):
        path = folder / "large"
        path.write_bytes(bytes(size))
        with socket.create_connection(("127.0.0.1", recipe.port), 20) as connection:
            request = b"GET /files/large HTTP/1.1\r\nHost: x\r\nConnection: close"
            connection.sendall(request + b"\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
            started = await asyncio.to_thread(count, connection, 1 << 16)  # it is open
            if cut:
                os.truncate(path, 0)
            else:
                (folder / "new").write_bytes(b"x")
                (folder / "new").replace(path)
            received = started + await asyncio.to_thread(count, connection, size)
        assert (received < size) is cut
    assert "Response content shorter than Content-Length" in recipe.log


def count(connection: socket.socket, most: int) -> int:
    """The bytes that arrive, until it ends or there were so many."""
    found = 0
    while found < most and (chunk := connection.recv(1 << 20)):
        found += len(chunk)
    return found


def test_what_happens_between_the_check_and_the_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "changed"

    def find_and_unlink(*_: object) -> Path:
        path.write_bytes(b"x")
        assert find(folder, "changed") == path
        path.unlink()
        return path

    def find_and_link(*_: object) -> Path:
        find_and_unlink()
        path.symlink_to("../secret.txt")
        return path

    monkeypatch.setenv("DOWNLOAD_DIR", str(folder))
    with TestClient(download.app) as client:
        monkeypatch.setattr(download, "find", find_and_unlink)
        with pytest.raises(RuntimeError, match="does not exist"):  # a 500
            client.get("/files/changed")
        monkeypatch.setattr(download, "find", find_and_link)
        assert client.get("/files/changed").content == b"secret"


async def test_without_a_folder_it_serves_one_that_goes(
    serve: Serve, tmp_path: Path
) -> None:
    env = {"DOWNLOAD_DIR": "", "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    server = serve(RECIPE, env=env)
    assert (await get(server, "prices in €.txt")).text == "7 €"
    server.stop()
    assert list((tmp_path / "tmp").iterdir()) == []
