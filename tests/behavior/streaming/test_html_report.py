"""streaming/html_report: what users wrote stays text, and a failed section is seen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from html.parser import HTMLParser

import httpx2
import pytest

from recipes.streaming import html_report
from tests.conftest import Serve
from tests.harness.server import Server

FED = "tests.behavior.streaming.fed_html_report"
RECIPE = {"TARGET": "recipes.streaming.html_report"}
NAIVE = {"TARGET": "tests.behavior.streaming.naive_html_report"}
END = "<p>End of the report.</p>"


@pytest.fixture(scope="module")
def servers(serve_for_file: Serve) -> dict[str, Server]:
    return {
        "recipe": serve_for_file(FED, env=RECIPE),
        "naive": serve_for_file(FED, env=NAIVE, strict=False),
    }


@pytest.fixture
def recipe(servers: dict[str, Server]) -> Server:
    return servers["recipe"]


@pytest.fixture
def naive(servers: dict[str, Server]) -> Server:
    return servers["naive"]


class Page(HTMLParser):
    """What a browser makes of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


async def change(client: httpx2.AsyncClient, **sections: str) -> None:
    response = await client.put("/sections", json=sections)
    assert response.is_success


async def page(client: httpx2.AsyncClient) -> str:
    """As much of it as arrives."""
    text = ""
    async with client.stream("GET", "/report") as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        with suppress(httpx2.RemoteProtocolError):
            async for part in response.aiter_text():
                text += part
    return text


@pytest.mark.defect("D70")
async def test_what_users_wrote_stays_text(recipe: Server, naive: Server) -> None:
    async def seen(server: Server) -> Page:
        async with server.client() as client:
            await change(client, Orders="hostile")
            return Page(await page(client))

    ours, theirs = await seen(recipe), await seen(naive)
    assert not {"script", "img"} & {*ours.tags}
    assert {name for name, _ in ours.attributes} == {"title"}
    hostile = """'"><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7*7 }}"""
    assert ("title", hostile) in ours.attributes
    assert hostile in "".join(ours.texts)
    assert {"script", "img"} <= {*theirs.tags}


async def test_a_script_would_not_run_and_a_proxy_sends_at_once(recipe: Server) -> None:
    async with recipe.client() as client:
        headers = (await client.get("/report")).headers
    assert headers["content-security-policy"] == "default-src 'none'"
    assert headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_section_that_fails_says_so_and_the_others_are_sent(
    recipe: Server, naive: Server, how: str
) -> None:
    async def with_a_failure(server: Server) -> list[bool]:
        async with server.client() as client:
            await change(client, Orders=how)
            text = await page(client)
            words = ("row of Users", "is missing", "row of Analytics", END)
            return [word in text for word in words]

    assert await with_a_failure(recipe) == [True, True, True, True]
    assert await with_a_failure(naive) == [True, False, False, False]
    error = "Cancelled" if "cancel" in how else "Connection"
    assert f"section Orders: {error}Error(" in recipe.log


async def test_a_field_that_is_not_there_fails_its_section(recipe: Server) -> None:
    async with recipe.client() as client:
        await change(client, Orders="no note")
        text = await page(client)
    assert text.count("is missing") == 1
    assert "row of Orders" not in text
    assert END in text


async def test_a_section_that_hangs_is_given_up(serve: Serve) -> None:
    server = serve(FED, env=RECIPE | {"FETCH_SECONDS": "0.1"})
    async with server.client() as client:
        await change(client, Users="waits", Orders="waits", Analytics="waits")
        text = await page(client)
    assert text.count("is missing") == 3
    assert text.endswith(f"{END}\n")
    assert server.log.count("TimeoutError()") == 3


async def test_sections_are_fetched_at_once_and_sent_in_order(
    recipe: Server, naive: Server
) -> None:
    async def while_one_waits(server: Server) -> tuple[str, str, int]:
        """What has arrived, what comes later, and how many fetches have begun."""
        before = server.log.count("fetching ")
        async with server.client() as client:
            await change(client, Orders="waits")
            async with client.stream("GET", "/report") as response:
                parts = response.aiter_text()
                early = await until(parts, "row of Users")
                while (fetched := server.log.count("fetching ") - before) < 2:
                    await asyncio.sleep(0.01)
                await change(client)
                return early, await until(parts, END), fetched

    early, late, fetched = await while_one_waits(recipe)
    assert "row of Orders" not in early
    assert late.index("row of Orders") < late.index("row of Analytics")
    assert fetched == 3
    assert (await while_one_waits(naive))[2] == 2


async def until(parts: AsyncIterator[str], needle: str) -> str:
    text = ""
    while needle not in text:
        text += await anext(parts)
    return text


async def test_a_client_that_leaves_cancels_what_is_fetched(recipe: Server) -> None:
    lines = [f"cancelled {name}" for name in ("Orders", "Analytics")]
    assert not any(line in recipe.log for line in lines)
    async with recipe.client() as client:
        await change(client, Orders="waits", Analytics="waits")
        async with client.stream("GET", "/report") as response:
            await until(response.aiter_text(), "row of Users")
    for line in lines:
        await asyncio.to_thread(recipe.wait_for_log, line)


async def test_a_long_section_is_cut_and_says_so(recipe: Server) -> None:
    async with recipe.client() as client:
        await change(client, Orders="many")
        text = await page(client)
    assert text.count("<td>row of Orders</td>") == html_report.MAX_ROWS
    assert text.count("There are more.") == 1


async def test_text_that_is_no_unicode_does_not_cut_the_page(
    recipe: Server, naive: Server
) -> None:
    async def is_whole(server: Server) -> bool:
        async with server.client() as client:
            await change(client, Orders="surrogate")
            return END in await page(client)

    assert await is_whole(recipe)
    assert not await is_whole(naive)


async def test_a_stop_ends_a_report_that_waits(serve: Serve) -> None:
    server = serve(FED, env=RECIPE, timeout_graceful_shutdown=1)
    async with server.client() as client:
        await change(client, Orders="waits")
        async with client.stream("GET", "/report") as response:
            await until(response.aiter_text(), "row of Users")
            server.terminate()
            assert await asyncio.to_thread(server.wait) == -15
    assert "cancelled Orders" in server.log
