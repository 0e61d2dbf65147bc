"""streaming/csv_export in small batches, two at once, with a deadline from outside."""

import os

from fastapi import Request

from recipes.streaming import csv_export

csv_export.MAX_EXPORTS = 2
csv_export.BATCH_ROWS = 100
csv_export.EXPORT_SECONDS = float(os.environ.get("EXPORT_SECONDS", "60"))
app = csv_export.app


@app.get("/count")
async def count(request: Request) -> int:
    """Another request, which needs a connection."""
    number: int = await request.state.pool.fetchval(
        "SELECT count(*) FROM survey_answers"
    )
    return number
