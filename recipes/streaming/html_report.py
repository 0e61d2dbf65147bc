# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Stream an HTML report section by section, escaped.

All sections are fetched at once. Each is sent, in order, as soon as it is there. Jinja2
escapes its data. A section that fails or takes too long says so in its place and in
the log, and the others are still sent. If the client leaves, all fetches are cancelled.

**Use when** a page has several slow parts and the reader should see the first ones
early. **Not when** one failure must fail the page: fetch all, then render.

Gotchas:

- The status is sent first. What fails later cannot become a 500, and a browser shows a
  page that was cut off as if it were complete: hence the last line.
- Jinja2 escapes nothing by default: set `autoescape=True`. It shows a field that is not
  there as empty text: `StrictUndefined` makes it an error.
- Autoescape is not enough in an attribute without quotes, in `href="{{ url }}"` (a
  `javascript:` URL), and in `<script>`: use `{{ data|tojson }}` there.
- The security policy blocks your styles and images too: allow what the page needs.
- `asyncio.timeout` does not stop a blocking call, which holds up all requests.

Try it:

    GET /report

Keywords: XSS, HTML injection, Jinja2, autoescape, StreamingResponse, partial page
Related: streaming/csv_export, concurrency/fan_out, routes/def_or_async
"""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, Response
from fastapi.responses import StreamingResponse
from jinja2 import Environment, StrictUndefined

FETCH_SECONDS = 5.0
MAX_ROWS = 1000  # of a section
HEADERS = {
    "Content-Security-Policy": "default-src 'none'",  # also if you forget to escape
    "X-Accel-Buffering": "no",  # nginx would collect the page before it sends it
}
Row = dict[str, object]

logger = logging.getLogger(__name__)
html = Environment(autoescape=True, undefined=StrictUndefined)
SECTION = html.from_string("""
<h2>{{ name }}</h2>
<table>
{%- for row in rows %}
<tr title="{{ row.note }}"><td>{{ row.title }}</td></tr>
{%- endfor %}
</table>
{%- if more %}
<p>There are more.</p>
{%- endif %}
""")
FAILED = html.from_string("""
<h2>{{ name }}</h2>
<p>This section is missing. Try again later.</p>
""")


async def render(name: str) -> bytes:
    """One section; it raises only if it is cancelled."""
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            rows = await fetch_rows(name, MAX_ROWS + 1)  # demo: your query, with LIMIT
        more = len(rows) > MAX_ROWS
        text = SECTION.render(name=name, rows=rows[:MAX_ROWS], more=more)
    except (Exception, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if task and task.cancelling():
            raise  # the client has left; else it was only a call of the backend
        logger.warning("section %s: %r", name, error)
        text = FAILED.render(name=name)
    return text.encode(errors="replace")  # lone surrogates


async def sections(response: Response) -> AsyncIterator[list[asyncio.Task[bytes]]]:
    response.headers.update(HEADERS)
    names = ["Users", "Orders", "Analytics"]  # demo
    tasks = [asyncio.create_task(render(name)) for name in names]
    try:
        yield tasks
    finally:  # not in the generator, where `await` fails once the client has left
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class HTMLStream(StreamingResponse):
    media_type = "text/html"


app = FastAPI()


@app.get("/report", response_class=HTMLStream)
async def report(
    tasks: Annotated[list[asyncio.Task[bytes]], Depends(sections)],
) -> AsyncIterable[bytes]:
    yield b"<!doctype html>\n<title>Report</title>\n<h1>Report</h1>\n"
    for task in tasks:
        yield await task
    yield b"<p>End of the report.</p>\n"


async def fetch_rows(name: str, limit: int) -> list[Row]:  # demo
    if name == "Analytics":
        raise ConnectionError("the backend is down")
    rows: list[Row] = [{"title": f"<script>alert('{name}')</script>", "note": '"><b>'}]
    return rows[:limit]


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        text = client.get("/report").text
        for word in "<script>", "&lt;script&gt;", "is missing", "End of the report":
            print(word, text.count(word))
            # > <script> 0
            # > &lt;script&gt; 2
            # > is missing 1
            # > End of the report 1


if __name__ == "__main__":
    main()
