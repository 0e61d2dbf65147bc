"""A sleep before the deletion holds up SIGTERM, and a crash leaves the file forever."""

import asyncio
import os
import tempfile

from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import FileResponse

app = FastAPI()


async def delete(path: str):
    await asyncio.sleep(60)
    if os.path.exists(path):
        os.remove(path)


@app.get("/report")
def report(rows: int, background_tasks: BackgroundTasks):
    with tempfile.NamedTemporaryFile("w", suffix=".csv", delete=False) as file:
        file.writelines(f"{row},{row * row}\n" for row in range(rows))
    background_tasks.add_task(delete, file.name)
    return FileResponse(file.name, filename="report.csv")
