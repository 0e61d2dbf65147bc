"""The site in a browser: the Try it panel, on a static host and on a live one."""

import asyncio
import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import uvicorn
from fastapi import Body, FastAPI, Header, Request, UploadFile, WebSocket
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)
from starlette.staticfiles import StaticFiles

from recipes._cookbook import live, pages
from recipes._cookbook.catalogue import RECIPES, find
from recipes._cookbook.catalogue import Request as Try
from recipes._cookbook.servers import Servers
from tests.harness.site import built

pytestmark = pytest.mark.browser

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
FLAGS = ["--disable-gpu", "--disable-quic", "--disable-background-networking"]

FEED = "recipes/sse/feed/"
PROBE = "recipes/probe/panel/"
EVIL = "<img src=x onerror='document.title=1'>"


# --- a recipe that does what the panel must cope with ---

probe = FastAPI()
gate = asyncio.Event()
left = threading.Event()


@probe.post("/echo")
async def echo(request: Request) -> dict[str, str]:
    body = (await request.body()).decode()
    return {"type": request.headers.get("content-type", ""), "body": body}


@probe.post("/upload")
async def upload(file: UploadFile) -> str:
    return f"{file.filename}: {len(await file.read())}"


@probe.get("/hostile", response_class=HTMLResponse)
async def hostile() -> HTMLResponse:
    return HTMLResponse(f"<script>document.title=1</script>{EVIL}", headers={"x": EVIL})


@probe.get("/gated")
async def gated() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield "första".encode()[:2]  # half of a character
        yield "första".encode()[2:] + b" first\n"
        await gate.wait()
        yield b"second\n"

    return StreamingResponse(body(), media_type="text/plain")


@probe.post("/open")
async def open_gate() -> None:
    gate.set()


@probe.get("/endless")
async def endless() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            left.set()

    return StreamingResponse(body(), media_type="text/plain")


@probe.get("/binary")
async def binary() -> StreamingResponse:
    return StreamingResponse(iter([b"\0" * 1000]), media_type="application/zip")


@probe.get("/events", response_class=EventSourceResponse)
async def events(
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[ServerSentEvent]:
    yield ServerSentEvent(comment="ping")
    yield ServerSentEvent(raw_data=f"{EVIL}\nline two", event="news", id="7")
    yield ServerSentEvent(raw_data=f"after {last_event_id}")
    yield ServerSentEvent(event="bare")


@probe.websocket("/talk")
async def talk(socket: WebSocket) -> None:
    await socket.accept()
    while (text := await socket.receive_text()) != "bye":
        await socket.send_text(f"you said {text} {EVIL}")
    await socket.send_bytes(b"123")
    await socket.close(4001, "as you wish")


@probe.post("/json")
async def takes_json(body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
    return body


REQUESTS = (
    Try("POST", "/echo", '{"a": "<b>"}', "200, a <b>note</b>"),
    Try("POST", "/upload", "file=@"),
    Try("GET", "/hostile"),
    Try("GET", "/gated"),
    Try("POST", "/open"),
    Try("GET", "/endless"),
    Try("GET", "/binary"),
    Try("SSE", "/events"),
    Try("WS", "/talk", "hello"),
    Try("WS", "/nowhere"),
)


# --- servers and browser ---


@contextmanager
def serving(app: FastAPI, listener: socket.socket) -> Iterator[None]:
    # h11: in this process, beside other tests, httptools has refused an upgrade.
    config = uvicorn.Config(
        app, http="h11", log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def live_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The live app with one real recipe, and the probe beside it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        site = built(tmp_path_factory.getbasetemp() / "live", site_url=url)
        add_probe_page(site)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(live, "recipes", lambda: (find("sse/feed"),))
            app = live.live_app(site, Servers({}, {}))
        app.mount("/live/probe/panel", probe)
        with serving(app, listener):
            yield url


@pytest.fixture(scope="module")
def static_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A host that only serves files, below a path."""
    site = built(tmp_path_factory.getbasetemp() / "site")
    app = FastAPI(openapi_url=None)
    app.mount("/some/path", StaticFiles(directory=site, html=True))
    with socket.create_server(("127.0.0.1", 0)) as listener, serving(app, listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/some/path/"


def chromium() -> str:
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, CHROMIUM)), None
    )
    if found:
        return found
    if MAC.exists():
        return str(MAC)
    missing = (
        "no Chromium: install it (apt-get install chromium), or set CHROMIUM=/path"
    )
    if os.environ.get("CI") or os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    sandbox = getattr(os, "geteuid", lambda: 1)() != 0  # Chromium has none for root
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(
            executable_path=path, args=FLAGS, chromium_sandbox=sandbox
        ) as browser,
    ):
        expect.set_options(timeout=15_000)
        yield browser


@pytest.fixture
def console() -> list[str]:
    """What the page complained about; a test that provokes it clears it."""
    return []


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One for all tests: they share the cache, which is most of a page's time."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        context.set_default_timeout(15_000)
        yield context


@pytest.fixture
def page(context: BrowserContext, console: list[str]) -> Iterator[Page]:
    """A page that may talk to its own host only, and may not complain."""
    hosts: set[str] = set()
    page = context.new_page()

    def listen(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            console.append(message.text)

    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.on("websocket", lambda socket: hosts.add(socket.url.split("/")[2]))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("console", listen)
    yield page
    own = page.url.split("/")[2]
    page.close()
    assert hosts <= {own}
    assert console == []


@pytest.fixture
def probe_page(page: Page, live_url: str) -> Page:
    """The panel of the probe, in a page like that of a recipe."""
    status = {"recipes": {"probe/panel": None}}
    page.route("**/live/status.json", lambda route: route.fulfill(json=status))
    page.goto(live_url + PROBE)
    return page


def add_probe_page(site: Path) -> None:
    """Like the page of a real recipe, with requests that only a test needs."""
    feed = find("sse/feed")
    text = (site / FEED / "index.html").read_text("utf-8")
    panel = pages.panel(feed)
    assert panel in text
    recipe = replace(feed, path=RECIPES / "probe" / "panel.py", requests=REQUESTS)
    page = site / PROBE / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(text.replace(panel, pages.panel(recipe)), "utf-8")


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("group", name=name, exact=True)


def answer(page: Page, name: str) -> Locator:
    return row(page, name).get_by_role("log")


def press(page: Page, name: str, button: str) -> None:
    row(page, name).get_by_role("button", name=button).first.click()


# --- tests ---


def test_a_static_host_shows_the_command(page: Page, static_url: str) -> None:
    with page.expect_response("**/live/status.json"):
        page.goto(static_url + FEED)
    panel = page.locator(".try-it")
    expect(panel).to_contain_text("uv run recipes serve")
    expect(panel).to_contain_text("SSE /feed")
    expect(panel.get_by_role("button")).to_have_count(0)


def test_any_other_answer_shows_the_command(page: Page, live_url: str) -> None:
    for body in ("<!doctype html><p>nothing here", '{"recipes": 1}'):
        page.route(
            "**/live/status.json", lambda route, _, b=body: route.fulfill(body=b)
        )
        with page.expect_response("**/live/status.json"):
            page.goto(live_url + FEED)
        expect(page.locator(".try-it")).to_contain_text("uv run recipes serve")


def test_a_recipe_that_could_not_start_says_why(page: Page, live_url: str) -> None:
    status = {"recipes": {"sse/feed": f"no database {EVIL}"}}
    page.route("**/live/status.json", lambda route: route.fulfill(json=status))
    page.goto(live_url + FEED)
    expect(page.locator(".try-it")).to_have_text(
        f"This recipe could not start: no database {EVIL}"
    )


def test_a_real_recipe_runs_in_its_page(page: Page, live_url: str) -> None:
    page.goto(live_url + FEED)
    feed, post = "SSE /feed", "POST /events"
    press(page, feed, "Open")
    expect(answer(page, feed)).to_contain_text("200 OK")
    press(page, post, "Send")
    expect(answer(page, post)).to_contain_text("201 Created")
    expect(answer(page, feed)).to_contain_text('"hello"')
    press(page, feed, "Stop")
    expect(answer(page, feed)).to_contain_text("Stopped.")
    # What is published meanwhile arrives after resuming.
    row(page, post).get_by_label("Body").fill('{"message": "missed"}')
    press(page, post, "Send")
    expect(answer(page, post)).to_contain_text("201 Created")
    row(page, feed).get_by_role("checkbox").check()
    press(page, feed, "Open")
    expect(answer(page, feed)).to_contain_text('"missed"')


def test_bodies(probe_page: Page) -> None:
    name = "POST /echo"
    body = row(probe_page, name).get_by_label("Body")
    output = answer(probe_page, name)
    expect(row(probe_page, name)).to_contain_text("Expect: 200, a <b>note</b>")
    press(probe_page, name, "Send")
    expect(output).to_contain_text('{"type":"application/json"')
    body.fill("plain words")
    press(probe_page, name, "Send")
    expect(output).to_contain_text('"type":"text/plain')
    body.fill('{"a": ')
    press(probe_page, name, "Send")
    expect(output).to_contain_text("Not sent, this is not JSON")
    press(probe_page, "POST /upload", "Send")
    expect(answer(probe_page, "POST /upload")).to_have_text("Choose a file first.")
    chosen = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"12345"}
    row(probe_page, "POST /upload").get_by_label("file").set_input_files(chosen)  # type: ignore[arg-type]
    press(probe_page, "POST /upload", "Send")
    expect(answer(probe_page, "POST /upload")).to_contain_text('"a.txt: 5"')


def test_the_path_can_be_edited_and_sent_by_keyboard(probe_page: Page) -> None:
    path = row(probe_page, "GET /hostile").get_by_label("GET")
    path.fill("/binary")
    path.press("Enter")
    output = answer(probe_page, "GET /hostile")
    expect(output).to_contain_text("1,000 bytes, not shown")
    link = row(probe_page, "GET /hostile").get_by_role("link")
    expect(link).to_have_attribute(
        "href",
        "**/live/probe/panel/binary".replace("**", probe_page.url.split("/recipes")[0]),
    )


def test_hostile_output_stays_text(probe_page: Page) -> None:
    for name, button in {
        "GET /hostile": "Send",
        "SSE /events": "Open",
        "WS /talk": "Connect",
    }.items():
        press(probe_page, name, button)
    row(probe_page, "WS /talk").get_by_role("button", name="Send").click()
    for name in ("GET /hostile", "SSE /events", "WS /talk"):
        expect(answer(probe_page, name)).to_contain_text(EVIL)
        assert answer(probe_page, name).locator("img, script, b").count() == 0
    assert probe_page.title() != "1"


def test_a_stream_is_shown_as_it_arrives(probe_page: Page) -> None:
    press(probe_page, "GET /gated", "Send")
    expect(answer(probe_page, "GET /gated")).to_contain_text("första first")
    expect(answer(probe_page, "GET /gated")).not_to_contain_text("second")
    press(probe_page, "POST /open", "Send")
    expect(answer(probe_page, "GET /gated")).to_contain_text("second")
    expect(answer(probe_page, "GET /gated")).to_contain_text("chunks, ")


def test_an_endless_body_is_bounded_and_can_be_stopped(probe_page: Page) -> None:
    left.clear()
    output = answer(probe_page, "GET /endless")
    press(probe_page, "GET /endless", "Send")
    expect(output).to_contain_text("xxx …")
    press(probe_page, "GET /endless", "Stop")
    expect(output).to_contain_text("Stopped.")
    assert len(output.inner_text()) < 21_000
    assert left.wait(20)


def test_events_of_every_name_are_shown(probe_page: Page) -> None:
    name = "SSE /events"
    press(probe_page, name, "Open")
    output = answer(probe_page, name)
    expect(output).to_contain_text("The server ended the stream.")
    expect(output).to_contain_text(f"news  id 7  {EVIL}\nline two")
    expect(output).to_contain_text("message  after None")
    expect(output).to_contain_text("bare  (no data: an EventSource does not fire)")
    expect(output).not_to_contain_text("ping")
    row(probe_page, name).get_by_role("checkbox").check()
    press(probe_page, name, "Open")
    expect(output).to_contain_text("message  after 7")


def test_websocket(probe_page: Page) -> None:
    name = "WS /talk"
    send = row(probe_page, name).get_by_role("button", name="Send")
    message = row(probe_page, name).get_by_label("Message")
    expect(send).to_be_disabled()
    press(probe_page, name, "Connect")
    send.click()
    output = answer(probe_page, name)
    expect(output).to_contain_text("→ hello")
    expect(output).to_contain_text("← you said hello")
    message.fill("bye")
    message.press("Enter")
    expect(output).to_contain_text("← 3 bytes, binary")
    expect(output).to_contain_text("Closed: 4001 as you wish")
    expect(send).to_be_disabled()
    press(probe_page, name, "Connect")
    expect(output).to_have_text("Connected.")
    press(probe_page, name, "Stop")
    expect(output).to_contain_text("Closed: 1000")


def test_a_refused_websocket_says_so(probe_page: Page, console: list[str]) -> None:
    press(probe_page, "WS /nowhere", "Connect")
    expect(answer(probe_page, "WS /nowhere")).to_contain_text("Refused")
    console.clear()  # the browser logs it, too


def test_leaving_the_page_ends_its_streams(probe_page: Page, live_url: str) -> None:
    # The theme navigates in place once it has read the sitemap.
    with probe_page.expect_response("**/sitemap.xml"):
        probe_page.reload()
    left.clear()
    press(probe_page, "GET /endless", "Send")
    expect(answer(probe_page, "GET /endless")).to_contain_text("xxx …")
    probe_page.evaluate("window.sameDocument = true")
    probe_page.get_by_role("navigation", name="Tabs").get_by_role(
        "link", name="Recipes"
    ).click()
    expect(probe_page.get_by_role("heading", level=1)).to_contain_text("Recipes")
    assert probe_page.evaluate("window.sameDocument")  # instant navigation
    assert left.wait(20)
    probe_page.unroute_all()
    probe_page.get_by_role("article").get_by_role(
        "link", name=find("sse/feed").title
    ).click()
    expect(probe_page).to_have_url(live_url + FEED)


def test_no_page_scrolls_sideways(page: Page, live_url: str) -> None:
    for path in ("", "recipes/", FEED, "catalogue/", "contributing/"):
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(live_url + path)
        if path == FEED:
            press(page, "SSE /feed", "Open")
            expect(answer(page, "SSE /feed")).to_contain_text("200 OK")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 844})
            wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, (path, width)


def test_search_finds_a_recipe_by_keyword(page: Page, static_url: str) -> None:
    page.goto(static_url)
    page.get_by_role("textbox", name="Search").click()
    page.keyboard.type("reconnect")
    first = page.locator(".md-search-result__item h1").first
    expect(first).to_have_text(find("sse/feed").title)
