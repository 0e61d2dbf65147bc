"""The recipe with copies that wait, and its route without bounds and with a deadline.

`/held` tells how many copies wait, `/release` lets all go on.
"""

import shutil
from threading import Event
from typing import Any

from fastapi import APIRouter

from recipes.routes import deadline
from recipes.streaming import form_upload

deadline.SECONDS = 0.5
copyfileobj = shutil.copyfileobj
go_on = Event()
held: list[Any] = []


def copy_half_then_wait(source: Any, target: Any) -> None:
    target.write(source.read(1))
    target.flush()
    held.append(target)
    go_on.wait(20)
    copyfileobj(source, target)


shutil.copyfileobj = copy_half_then_wait  # type: ignore[assignment]  # in this process
app = form_upload.app
app.post("/unbounded", status_code=201)(form_upload.upload)
router = APIRouter(route_class=deadline.DeadlineRoute)
router.post("/deadline", status_code=201)(form_upload.upload)
app.include_router(router)


@app.get("/held")
async def count() -> int:
    return len(held)


@app.get("/release")
async def release() -> None:
    go_on.set()
