"""streaming/form_upload: a form's file is whole and under our name, or not there."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from recipes.streaming.form_upload import MAX_BYTES, MAX_COPIES
from tests.conftest import Serve
from tests.harness.server import Server

TARGET = "recipes.streaming.form_upload"
NAIVE = "tests.behavior.streaming.naive_form_upload"
FULL = "tests.behavior.streaming.form_upload_full_disk"
HELD = "tests.behavior.streaming.form_upload_held"
END = b"\r\n--b--\r\n"


def head(name: bytes = b"a.txt") -> bytes:
    disposition = b'form-data; name="file"; filename="%b"' % name
    return b"--b\r\nContent-Disposition: %b\r\n\r\n" % disposition


def new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new(tmp_path_factory.mktemp("recipe") / "files")


@pytest.fixture(scope="module")
def naive_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new(tmp_path_factory.mktemp("naive") / "files")


@pytest.fixture(scope="module")
def recipe(serve_for_file: Serve, folder: Path) -> Server:
    return serve_for_file(TARGET, env={"UPLOAD_DIR": str(folder)})


@pytest.fixture(scope="module")
def naive(serve_for_file: Serve, naive_folder: Path) -> Server:
    env = {"UPLOAD_DIR": str(naive_folder)}
    return serve_for_file(NAIVE, env=env, strict=False)


@pytest.fixture(autouse=True)
def empty(folder: Path, naive_folder: Path) -> None:
    for path in (*folder.rglob("*"), *naive_folder.iterdir()):
        if path.is_file():
            path.unlink()
    for path in folder.iterdir():
        path.rmdir()


async def send(
    server: Server, content: bytes = b"x", name: str = "a.txt", path: str = "/files"
) -> httpx2.Response:
    async with server.client() as client:
        return await client.post(path, files={"file": (name, content)})


async def send_raw(
    server: Server, body: bytes | AsyncIterator[bytes], charset: str = "utf-8"
) -> httpx2.Response:
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    async with server.client(headers={"Content-Type": kind}) as client:
        return await client.post("/files", content=body)


async def get(server: Server, path: str) -> httpx2.Response:
    async with server.client() as client:
        return await client.get(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def begin(server: Server, content: bytes = b"x", path: str = "/files") -> socket.socket:
    """A form that the server receives, and of which only the end is missing."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: x",
        "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {len(head() + content + END)}",
        "Expect: 100-continue",
    )
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    assert b" 100 " in connection.recv(1 << 16)
    connection.sendall(head() + content)
    return connection


async def status(connection: socket.socket) -> int:
    answer = await asyncio.to_thread(connection.recv, 1 << 16)
    return int(answer.split()[1])


async def test_the_file_comes_back_as_it_was_sent(recipe: Server, folder: Path) -> None:
    for size in (1, 1024 * 1024, 1024 * 1024 + 1, MAX_BYTES):
        content = os.urandom(size)
        sent = await send(recipe, content, "a 'b' é.html")
        assert sent.status_code == 201
        file_id = sent.json()["id"]
        assert sent.json() == {"id": file_id, "name": "a 'b' é.html", "size": size}
        found = await get(recipe, f"/files/{file_id}")
        assert found.content == content
        assert found.headers["Content-Disposition"].startswith("attachment; ")
        assert found.headers["Content-Type"] == "application/octet-stream"
        assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert len(names(folder)) == 4


async def test_no_name_leads_out_of_the_folder(
    recipe: Server, naive: Server, folder: Path, naive_folder: Path
) -> None:
    hostile = ["../a", str(folder.parent / "a"), "..\\a", "%2e%2e/a", ".", "..", "~"]
    for name in hostile:
        sent = await send(recipe, name=name)
        assert (sent.status_code, sent.json()["name"]) == (201, name)
        found = await get(recipe, f"/files/{sent.json()['id']}")
        assert "/" not in found.headers["Content-Disposition"]
    assert len(names(folder)) == len(hostile)
    assert names(folder.parent) == [folder.name]

    assert (await send(naive, b"pwned", "../pwned.txt")).status_code == 201
    assert (naive_folder / "../pwned.txt").read_bytes() == b"pwned"
    assert (await send(naive, name=".")).status_code == 500


@pytest.mark.parametrize(
    ("charset", "sent", "kept"),
    [
        ("unicode_escape", rb"\ud800a", "_a"),
        ("utf-7", b"+2AA-a", "_a"),
        ("unicode_escape", rb"a\r\nSet-Cookie: b", "a__Set-Cookie: b"),
        ("utf-8", b"a\0b", "a_b"),
        ("utf-8", "a\u202etxt.exe".encode(), "a_txt.exe"),
        ("utf-8", b"\xff", "ÿ"),
        ("utf-8", b"x" * 600, "x" * 255),
        ("utf-8", b"", ""),
        ("utf-8", b"/", "/"),
    ],
)
async def test_the_name_is_text(
    recipe: Server, charset: str, sent: bytes, kept: str
) -> None:
    answer = await send_raw(recipe, head(sent) + b"content" + END, charset)
    assert (answer.status_code, answer.json()["name"]) == (201, kept)
    found = await get(recipe, f"/files/{answer.json()['id']}")
    assert (found.status_code, found.content) == (200, b"content")
    assert "Set-Cookie" not in found.headers


async def test_no_upload_touches_another_file(
    recipe: Server, naive: Server, naive_folder: Path
) -> None:
    contents = [f"{number}".encode() for number in range(8)]
    sent = await asyncio.gather(*(send(recipe, each) for each in contents))
    found = [await get(recipe, f"/files/{each.json()['id']}") for each in sent]
    assert [each.content for each in found] == contents

    for each in contents:
        assert (await send(naive, each)).is_success
    assert [path.read_bytes() for path in naive_folder.iterdir()] == contents[-1:]


async def bytes_until_answered(server: Server) -> tuple[int, int]:
    """Sends a chunked form of up to 40 MiB; the status, and how much was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lines = (
        "POST /files HTTP/1.1",
        "Host: x",
        "Content-Type: multipart/form-data; boundary=b",
        "Transfer-Encoding: chunked",
    )
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = asyncio.create_task(reader.readline())
    sent, block = 0, bytes(64 * 1024)
    writer.write(b"%x\r\n%b\r\n" % (len(head()), head()))
    while sent < 4 * MAX_BYTES and not answer.done():
        writer.write(b"%x\r\n%b\r\n" % (len(block), block))
        await writer.drain()
        await asyncio.sleep(0)
        sent += len(block)
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(END), END))
    status = int((await answer).split()[1])
    writer.transport.abort()
    return status, sent


async def test_what_is_too_large_is_refused_and_leaves_nothing(
    recipe: Server, naive: Server, folder: Path
) -> None:
    assert (await send(recipe, bytes(MAX_BYTES + 1))).status_code == 413
    assert (await send(recipe, bytes(2 * MAX_BYTES))).status_code == 413
    status, sent = await bytes_until_answered(recipe)
    assert (status, sent < 4 * MAX_BYTES) == (413, True)
    assert names(folder) == []
    assert await bytes_until_answered(naive) == (201, 4 * MAX_BYTES)


async def test_the_copy_does_not_block_the_event_loop(
    serve: Serve, recipe: Server, naive_folder: Path
) -> None:
    strict = serve(NAIVE, env={"UPLOAD_DIR": str(naive_folder)}, strict=True)
    assert (await send(recipe, bytes(2 << 20))).status_code == 201
    assert (await send(strict)).status_code == 500
    strict.wait_for_log("Blocking call to io.BufferedWriter.write")


async def test_what_is_no_file_is_refused(
    recipe: Server, naive: Server, folder: Path
) -> None:
    nothing_chosen = head(b"") + END  # what a browser sends
    text = head().replace(b"; filename", b"; title") + b"x" + END
    for body in (b"", nothing_chosen, head() + END, text):
        assert (await send_raw(recipe, body)).status_code == 422, body
    async with recipe.client() as client:
        assert (await client.post("/files")).status_code == 422
        assert (await client.post("/files", json={"file": "x"})).status_code == 422
        assert (await client.post("/files", data={"file": "x"})).status_code == 422
    assert names(folder) == []
    assert (await send_raw(naive, head() + END)).status_code == 201


async def test_a_second_file_or_a_large_field_is_refused(
    recipe: Server, folder: Path
) -> None:
    answer = await send_raw(recipe, head() + b"x\r\n" + head() + b"x" + END)
    assert answer.status_code == 400
    expected = "Too many files. Maximum number of files is 1."
    assert answer.json()["detail"] == expected
    async with recipe.client() as client:
        files = {"file": ("a", b"x")}
        for text, expected_status in ("x" * 4000, 201), ("x" * 6000, 400):
            answer = await client.post("/files", files=files, data={"title": text})
            assert answer.status_code == expected_status
    assert len(names(folder)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_form_that_is_cut_off_leaves_nothing(
    serve: Serve, tmp_path: Path
) -> None:
    files, temporary = new(tmp_path / "files"), new(tmp_path / "temporary")
    env = {"UPLOAD_DIR": str(files), "TMPDIR": str(temporary)}
    server = serve(TARGET, env=env)

    def received() -> list[str]:
        links = Path(f"/proc/{server.pid}/fd").iterdir()
        targets = []
        for link in links:
            with suppress(FileNotFoundError):  # closed meanwhile
                targets.append(os.readlink(link))  # noqa: PTH115 - "… (deleted)"
        return [each for each in targets if each.startswith(str(temporary))]

    with begin(server, bytes(2 << 20)):
        await until(lambda: any("(deleted)" in each for each in received()))
        assert names(temporary) == []  # it has no name: nothing to delete
    await until(lambda: not received())
    assert names(files) == []
    assert "Exception" not in server.log


async def test_a_form_without_its_end_is_no_file(serve: Serve, tmp_path: Path) -> None:
    env = {"UPLOAD_DIR": str(new(tmp_path / "files"))}
    server = serve(TARGET, env=env, strict=False)  # Starlette leaves it to the GC
    assert (await send_raw(server, head() + b"cut off")).status_code == 422
    assert names(tmp_path / "files") == []


async def test_a_full_disk_is_told_and_leaves_nothing(
    serve: Serve, tmp_path: Path
) -> None:
    files, naive_files = new(tmp_path / "files"), new(tmp_path / "naive")
    server = serve(FULL, env={"UPLOAD_DIR": str(files)})
    assert (await send(server, bytes(1 << 19))).status_code == 507
    in_temporary_file = await send(server, bytes(2 << 20))
    assert in_temporary_file.status_code == 400
    assert "There was an error parsing the body" in in_temporary_file.text
    assert names(files) == []
    assert (await send(server, bytes(1 << 15))).status_code == 201
    assert "Error" not in server.log

    naive = serve(f"{FULL}:naive", env={"UPLOAD_DIR": str(naive_files)}, strict=False)
    assert (await send(naive, bytes(1 << 19))).status_code == 500
    assert (await get(naive, "/files/a.txt")).status_code == 200  # half of it


@pytest.fixture
def held(serve: Serve, tmp_path: Path) -> Server:
    return serve(HELD, env={"UPLOAD_DIR": str(new(tmp_path / "files"))})


async def wait_until_held(server: Server, count: int) -> None:
    async with asyncio.timeout(20):
        while (await get(server, "/held")).json() != count:
            await asyncio.sleep(0.01)


async def test_copies_at_once_are_bounded_and_not_seen(
    held: Server, tmp_path: Path
) -> None:
    crowd = MAX_COPIES + 4
    uploads = [asyncio.create_task(send(held)) for _ in range(crowd)]
    await wait_until_held(held, MAX_COPIES)
    parts = names(tmp_path / "files")
    assert len(parts) == MAX_COPIES
    for part in parts:
        file_id = part.removeprefix(".form-")
        assert (await get(held, f"/files/{file_id}")).status_code == 404
    more = [asyncio.create_task(send(held, path="/unbounded")) for _ in range(crowd)]
    await wait_until_held(held, MAX_COPIES + crowd)  # these have no bound
    await get(held, "/release")
    answers = await asyncio.gather(*uploads, *more)
    assert [answer.status_code for answer in answers] == [201] * (2 * crowd)


async def test_a_deadline_ends_receiving_and_copying(
    held: Server, tmp_path: Path
) -> None:
    with begin(held, path="/deadline") as stalled:
        assert await status(stalled) == 504
    assert (await send(held, bytes(2 << 20), path="/deadline")).status_code == 504
    await wait_until_held(held, 1)  # a thread is not stopped
    await get(held, "/release")
    await until(lambda: not names(tmp_path / "files"))  # its file is closed: no upload


async def test_what_a_crash_left_goes_at_a_later_start_but_not_what_lives(
    serve: Serve, held: Server, tmp_path: Path
) -> None:
    files = tmp_path / "files"
    upload = asyncio.create_task(send(held))
    await wait_until_held(held, 1)
    held.kill()
    assert isinstance(await asyncio.gather(upload, return_exceptions=True), list)
    (left,) = names(files)
    published, raw = "0" * 32, ".upload-1"  # that one is streaming/upload's
    for old in left, published, raw:
        (files / old).mkdir(exist_ok=True)
        os.utime(files / old, (0, 0))
    (files / ".form-live").mkdir()  # another worker's
    serve(TARGET, env={"UPLOAD_DIR": str(files)})
    assert names(files) == [".form-live", raw, published]


async def test_a_stop_waits_for_an_upload(serve: Serve, tmp_path: Path) -> None:
    files = new(tmp_path / "files")
    server = serve(TARGET, env={"UPLOAD_DIR": str(files)}, timeout_graceful_shutdown=30)
    with begin(server) as upload:
        server.terminate()
        await asyncio.to_thread(server.wait_for_log, "Waiting for connections to close")
        upload.sendall(END)
        assert await status(upload) == 201
    assert await asyncio.to_thread(server.wait) == -15
    assert len(names(files)) == 1


async def test_an_id_leads_to_a_file_or_nowhere(recipe: Server, folder: Path) -> None:
    (folder / ("0" * 32)).write_text("of streaming/upload, in the same folder")
    for file_id in ("0" * 32, "1" * 32):
        assert (await get(recipe, f"/files/{file_id}")).status_code == 404
    for path in ("..%2Ffiles", "%2e%2e", "%00", "x", ".form-1", "1" * 5000):
        assert (await get(recipe, f"/files/{path}")).status_code in {404, 422}


async def test_without_a_folder_it_warns_and_uses_one_that_goes(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(TARGET, env={"TMPDIR": str(tmp_path), "UPLOAD_DIR": ""})
    assert "No UPLOAD_DIR: a stop deletes all" in server.log
    assert (await send(server)).status_code == 201
    (folder,) = (name for name in names(tmp_path) if name.startswith("tmp"))
    server.stop()
    assert folder not in names(tmp_path)
