"""What users wrote becomes part of the page, scripts too, and a section that fails cuts
the page off, behind a 200."""

import asyncio

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

app = FastAPI()


async def fetch_rows(name: str, limit: int):
    await asyncio.sleep(0.1)
    return [{"title": f"{name} 1", "note": ""}]


@app.get("/report")
async def report():
    async def stream():
        yield "<!doctype html><h1>Report</h1>"
        for name in ["Users", "Orders", "Analytics"]:
            rows = await fetch_rows(name, 1000)
            yield f"<h2>{name}</h2>"
            for row in rows:
                yield f'<p title="{row["note"]}">{row["title"]}</p>'
        yield "<p>End of the report.</p>"

    return StreamingResponse(stream(), media_type="text/html")
