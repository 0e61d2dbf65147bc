"""streaming/upload: whole files under the server's names, or nothing at all."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import pytest
from fastapi.concurrency import run_in_threadpool

from recipes.streaming import upload
from tests.behavior.streaming.small_upload import BLOCK, MAX_BYTES, MAX_UPLOADS
from tests.conftest import Serve
from tests.harness.server import Server

TARGET = "recipes.streaming.upload"
SMALL = "tests.behavior.streaming.small_upload"
NAIVE = "tests.behavior.streaming.naive_upload"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    found = tmp_path / "inside" / "files"
    found.mkdir(parents=True)
    return found


@pytest.fixture
def recipe(serve: Serve, directory: Path) -> Server:
    return serve(SMALL, env={"UPLOAD_DIR": str(directory)})


@pytest.fixture
def naive_directory(tmp_path: Path) -> Path:
    found = tmp_path / "outside" / "files"
    found.mkdir(parents=True)
    return found


@pytest.fixture
def naive(serve: Serve, naive_directory: Path) -> Server:
    return serve(NAIVE, env={"UPLOAD_DIR": str(naive_directory)}, strict=False)


async def send(
    server: Server,
    content: bytes | AsyncIterator[bytes] = b"x",
    name: str = "",
    content_type: str = "image/png",  # a browser's `fetch` tells what the file is
) -> httpx2.Response:
    headers = {"Content-Type": content_type}
    async with server.client(headers=headers) as client:
        return await client.post("/files", params={"name": name}, content=content)


async def send_form(server: Server, content: bytes, name: str) -> httpx2.Response:
    async with server.client() as client:
        return await client.post("/files", files={"file": (name, content)})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def partial(directory: Path) -> list[str]:
    return [name for name in names(directory) if name.startswith(".upload-")]


def contents(directory: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in directory.iterdir())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def begin(server: Server, missing: int = BLOCK) -> socket.socket:
    """An upload of which one block is sent, and the rest is `missing`."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    size = f"Content-Length: {BLOCK + missing}"
    head = f"POST /files HTTP/1.1\r\nHost: x\r\n{size}\r\n\r\n"
    connection.sendall(head.encode() + bytes(BLOCK))
    return connection


async def status(connection: socket.socket) -> int:
    answer = await asyncio.to_thread(connection.recv, 1 << 16)
    return int(answer.split()[1])


def reads_to_the_end(connection: socket.socket) -> bool:
    while connection.recv(1 << 16):
        pass
    return True


@pytest.mark.defect("D31", "D36")
async def test_no_name_leads_out_of_the_directory(
    recipe: Server, naive: Server, directory: Path, naive_directory: Path
) -> None:
    absolute = directory.parent / "absolute.txt"
    hostile = ["../a.txt", str(absolute), "..\\a.txt", "%2e%2e/a", "a/b", ".", "..", ""]
    hostile += [
        "a\0b",
        "a\nb",
        "x" * 255,
        ".upload-1",
        "~",
        "*",
        "\N{FULLWIDTH FULL STOP}",
    ]
    for name in hostile:
        response = await send(recipe, b"content", name)
        assert response.status_code == 201, name
        assert response.json()["name"] == name
    assert contents(directory) == [b"content"] * len(hostile)
    assert names(directory.parent) == [directory.name]
    assert (await send(recipe, name="x" * 256)).status_code == 422

    assert (await send_form(naive, b"pwned", "../pwned.txt")).status_code == 201
    assert (naive_directory / "../pwned.txt").read_bytes() == b"pwned"
    assert (await send_form(naive, b"content", ".")).status_code == 500


@pytest.mark.defect("D32", "D33")
async def test_no_upload_touches_another_file(
    recipe: Server, naive: Server, directory: Path, naive_directory: Path
) -> None:
    for existing in (directory / "config", naive_directory / "config"):
        existing.write_bytes(b"ours")

    answers = await asyncio.gather(
        *(send(recipe, f"{n}".encode(), "config") for n in range(MAX_UPLOADS))
    )
    for number, answer in enumerate(answers):
        assert (directory / answer.json()["id"]).read_bytes() == f"{number}".encode()
    assert (directory / "config").read_bytes() == b"ours"

    for user in (b"first", b"second"):
        assert (await send_form(naive, user, "config")).is_success
    assert contents(naive_directory) == [b"second"]


def peak_memory(server: Server) -> int:
    """In KiB, since the process started."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.defect("D34")
async def test_memory_does_not_grow_with_the_file(
    serve: Serve, directory: Path, naive: Server
) -> None:
    recipe = serve(TARGET, env={"UPLOAD_DIR": str(directory)})
    assert (await send(recipe)).is_success
    assert (await send_form(naive, b"x", "warm-up")).is_success
    content = bytes(32 * 1024 * 1024)
    size = len(content) // 1024

    before = peak_memory(recipe)
    assert (await send(recipe, content)).json()["size"] == len(content)
    assert peak_memory(recipe) - before < size / 4

    before = peak_memory(naive)
    assert (await send_form(naive, content, "large")).is_success
    assert peak_memory(naive) - before > size / 2


async def blocks(count: int) -> AsyncIterator[bytes]:
    """Chunked: no Content-Length."""
    for _ in range(count):
        yield bytes(BLOCK)
    yield b"x"


@pytest.mark.defect("D34")
async def test_what_is_too_large_is_refused_and_leaves_nothing(
    recipe: Server, naive: Server, directory: Path
) -> None:
    too_large = bytes(MAX_BYTES + 1)
    assert (await send(recipe, too_large)).status_code == 413
    assert (await send(recipe, blocks(MAX_BYTES // BLOCK))).status_code == 413
    assert names(directory) == []
    assert (await send_form(naive, too_large, "too-large")).status_code == 201


async def status_of_head(server: Server, path: str) -> int:
    """The answer to the head of a request whose body would be too large."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as one:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            f"Content-Length: {upload.MAX_BYTES + 1}\r\n\r\n"
        )
        one.sendall(head.encode())
        return await status(one)


async def test_the_refusal_comes_before_the_upload(
    serve: Serve, directory: Path
) -> None:
    target = "tests.behavior.streaming.upload_impatient"
    server = serve(target, env={"UPLOAD_DIR": str(directory)}, strict=False)
    assert await status_of_head(server, "/files") == 413  # and not 100
    assert await status_of_head(server, "/other") == 100  # the limit is the route's
    assert (await send_form(server, b"x", "x")).status_code == 415
    assert names(directory) == []


@pytest.mark.defect("D35")
async def test_the_file_is_not_written_in_the_event_loop(
    serve: Serve, recipe: Server, naive_directory: Path
) -> None:
    strict = serve(NAIVE, env={"UPLOAD_DIR": str(naive_directory)}, strict=True)
    assert (await send(recipe)).status_code == 201
    assert (await send_form(strict, b"x", "x")).status_code == 500
    strict.wait_for_log("Blocking call to io.BufferedWriter.write")


async def test_the_file_is_what_was_sent(recipe: Server, directory: Path) -> None:
    for size in (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7):
        content = (b"0123456" * (size // 7 + 1))[:size]
        answer = (await send(recipe, content, "name", "application/json")).json()
        (stored,) = names(directory)
        assert (directory / stored).read_bytes() == content
        assert answer == {"id": stored, "name": "name", "size": size}
        (directory / stored).unlink()


async def test_half_a_file_is_never_seen_and_goes_with_its_client(
    recipe: Server, directory: Path
) -> None:
    with begin(recipe):
        await until(lambda: names(directory))
        assert partial(directory) == names(directory)
    await until(lambda: not names(directory))
    assert "Exception" not in recipe.log


async def test_what_ends_early_is_no_file(recipe: Server, directory: Path) -> None:
    """Chunked, and the last chunk is missing: what came looks complete."""
    with socket.create_connection(("127.0.0.1", recipe.port), timeout=20) as one:
        head = b"POST /files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        one.sendall(head + b"5\r\nhello\r\n")
        one.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(one.recv, 1024) == b""
    assert (await send(recipe)).is_success
    assert contents(directory) == [b"x"]


async def test_a_client_that_stalls_or_drips_is_let_go(
    serve: Serve, directory: Path
) -> None:
    target = "tests.behavior.streaming.upload_impatient"
    server = serve(target, env={"UPLOAD_DIR": str(directory)})
    with begin(server) as stalled, begin(server) as dripping:

        async def drip() -> None:
            while True:
                dripping.sendall(b"x")
                await asyncio.sleep(0.05)

        drops = asyncio.create_task(drip())
        try:
            assert await status(stalled) == 408
            assert await status(dripping) == 408
            assert await asyncio.to_thread(reads_to_the_end, stalled)
        finally:
            drops.cancel()
    assert names(directory) == []


async def test_uploads_at_once_are_bounded(recipe: Server, directory: Path) -> None:
    with ExitStack() as stack:
        uploads = [stack.enter_context(begin(recipe)) for _ in range(MAX_UPLOADS)]
        await until(lambda: len(partial(directory)) == MAX_UPLOADS)
        refused = await send(recipe)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        uploads[0].close()
        await until(lambda: len(partial(directory)) == MAX_UPLOADS - 1)
        assert (await send(recipe)).status_code == 201
    await until(lambda: not partial(directory))
    assert len(names(directory)) == 1


async def test_a_full_disk_is_told_and_leaves_nothing(
    serve: Serve, directory: Path
) -> None:
    target = "tests.behavior.streaming.upload_full_disk"
    server = serve(target, env={"UPLOAD_DIR": str(directory)})
    assert (await send(server, bytes(3 * BLOCK))).status_code == 507
    assert names(directory) == []
    assert (await send(server, bytes(2 * BLOCK))).status_code == 201


@pytest.mark.parametrize("how", ["by_anyio", "by_asyncio"])
async def test_a_cancelled_upload_leaves_nothing(
    serve: Serve, directory: Path, how: str
) -> None:
    target = f"tests.behavior.streaming.upload_cancelled:{how}"
    server = serve(target, env={"UPLOAD_DIR": str(directory)})
    with begin(server):
        await until(lambda: partial(directory))
        async with server.client() as client:
            await client.get("/cancel")
        await until(lambda: not partial(directory))


@pytest.mark.parametrize("held", ["append", "publish"])
async def test_what_a_cancelled_upload_still_does_in_its_thread_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """A native cancel, as of uvicorn's graceful timeout, does not wait for it."""
    begun, go_on, ended = Event(), Event(), Event()

    async def in_thread(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        def run() -> Any:
            if function.__name__ != held:
                return function(*args, **more)
            begun.set()
            go_on.wait(20)  # a slow file system
            try:
                return function(*args, **more)
            finally:
                ended.set()

        return await run_in_threadpool(run)

    async def body() -> AsyncIterator[bytes]:
        yield b"hello"

    monkeypatch.setattr(upload, "run_in_threadpool", in_thread)
    request = asyncio.create_task(upload.store(body(), tmp_path))
    assert await asyncio.to_thread(begun.wait, 20)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 20)
    assert names(tmp_path) == []


async def test_a_stop_waits_for_an_upload(serve: Serve, directory: Path) -> None:
    env = {"UPLOAD_DIR": str(directory)}
    server = serve(SMALL, env=env, timeout_graceful_shutdown=30)
    with begin(server, missing=1) as upload:
        await until(lambda: partial(directory))
        server.terminate()
        await asyncio.to_thread(server.wait_for_log, "Waiting for connections to close")
        upload.sendall(b"x")
        assert await status(upload) == 201
    assert await asyncio.to_thread(server.wait) == -15
    assert contents(directory) == [bytes(BLOCK) + b"x"]


async def test_a_stop_ends_an_upload_that_stalls_and_leaves_nothing(
    serve: Serve, directory: Path
) -> None:
    env = {"UPLOAD_DIR": str(directory)}
    server = serve(SMALL, env=env, strict=False, timeout_graceful_shutdown=1)
    with begin(server), begin(server):
        await until(lambda: len(partial(directory)) == 2)
        server.terminate()
        assert await asyncio.to_thread(server.wait) == -15
    assert names(directory) == []


async def test_what_a_crash_left_goes_at_a_later_start_but_not_what_lives(
    serve: Serve, directory: Path
) -> None:
    env = {"UPLOAD_DIR": str(directory)}
    (directory / ".not-ours").write_bytes(b"")
    os.utime(directory / ".not-ours", (0, 0))
    crashed = serve(SMALL, env=env)
    whole = (await send(crashed)).json()["id"]
    os.utime(directory / whole, (0, 0))
    with begin(crashed):
        await until(lambda: partial(directory))
        crashed.kill()
    (left,) = partial(directory)
    os.utime(directory / left, (0, 0))
    (directory / ".upload-live").write_bytes(b"another worker's")
    serve(SMALL, env=env)
    assert names(directory) == sorted([".not-ours", ".upload-live", whole])


async def test_without_a_directory_it_warns_and_uses_one_that_goes(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(TARGET, env={"TMPDIR": str(tmp_path), "UPLOAD_DIR": ""})
    assert "No UPLOAD_DIR: a stop deletes all" in server.log
    answer = (await send(server)).json()
    (directory,) = (name for name in names(tmp_path) if name.startswith("tmp"))
    assert names(tmp_path / directory) == [answer["id"]]
    server.stop()
    assert directory not in names(tmp_path)


async def test_a_form_is_complete_before_the_login_runs(serve: Serve) -> None:
    """Why the recipe takes the raw body: `UploadFile` cannot refuse early."""
    server = serve("tests.behavior.streaming.upload_login")
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    end = b"x\r\n--b--\r\n"
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as form,
        socket.create_connection(("127.0.0.1", server.port), timeout=20) as body,
    ):
        for connection, path in (form, "form"), (body, "body"):
            head = (
                f"POST /{path} HTTP/1.1\r\nHost: x\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\n"
                f"Content-Length: {len(part + end)}\r\n\r\n"
            )
            connection.sendall(head.encode() + part)
        assert await status(body) == 401
        assert "login for /form" not in server.log
        form.sendall(end)
        assert await status(form) == 401
        assert "login for /form" in server.log
