"""One that fails to open or to close leaves the other open; the order is wrong, too.

Threads use the connection at the same time: some get rows of another one, or none.
"""

import asyncio
import os
import secrets
import sqlite3
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request


async def create_db_pool():
    path = os.environ.get("LEASES_FILE", ":memory:")
    db = await asyncio.to_thread(
        sqlite3.connect, path, isolation_level=None, check_same_thread=False
    )
    await asyncio.to_thread(db.execute, "CREATE TABLE IF NOT EXISTS lease (worker)")
    return db


async def take_lease(db):
    worker = secrets.token_hex(4)
    await asyncio.to_thread(db.execute, "INSERT INTO lease VALUES (?)", [worker])
    return worker


async def drop_lease(db, worker):
    await asyncio.to_thread(db.execute, "DELETE FROM lease WHERE worker=?", [worker])


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.db = await create_db_pool()
    app.state.worker = await take_lease(app.state.db)
    yield
    await asyncio.to_thread(app.state.db.close)
    await drop_lease(app.state.db, app.state.worker)


app = FastAPI(lifespan=lifespan)


@app.get("/leases")
def leases(request: Request):
    db = request.app.state.db
    rows = db.execute("SELECT worker FROM lease LIMIT 100").fetchall()
    return {"mine": [request.app.state.worker], "all": [worker for (worker,) in rows]}
