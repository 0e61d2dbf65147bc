"""It releases before it rolls back: its own AttributeError hides the error of the block."""

import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, HTTPException


class Session:
    async def __aenter__(self):
        self.connection = await app.state.pool.acquire()
        return self.connection

    async def __aexit__(self, kind, error, trace):
        await app.state.pool.release(self.connection)
        self.connection = None
        if error:
            await self.connection.rollback()


@asynccontextmanager
async def lifespan(app):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/readers")
async def create_reader(body: dict[str, str]):
    try:
        async with Session() as db:
            query = "INSERT INTO readers (name) VALUES ($1) RETURNING id"
            reader_id = await db.fetchval(query, body["name"])
            query = "INSERT INTO reader_emails VALUES ($1, $2)"
            await db.execute(query, body["email"], reader_id)
    except asyncpg.UniqueViolationError:
        raise HTTPException(409, "This email is taken")


@app.get("/readers")
async def list_readers():
    async with Session() as db:
        return [dict(row) for row in await db.fetch("SELECT * FROM readers")]
