"""A dependency that yields a connection holds it until the response is sent: clients
that do not read take the whole pool, and who waits for a connection waits forever."""

import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import Depends, FastAPI

pool = None


@asynccontextmanager
async def lifespan(app):
    global pool
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], max_size=10) as pool:
        await pool.execute("""
            CREATE TABLE IF NOT EXISTS readers (
                id serial PRIMARY KEY, name text NOT NULL, password_hash text);
            CREATE TABLE IF NOT EXISTS reader_emails (
                email text PRIMARY KEY, reader_id int NOT NULL REFERENCES readers)
        """)
        yield


app = FastAPI(lifespan=lifespan)


async def get_connection():
    async with pool.acquire() as connection:
        yield connection


@app.post("/readers")
async def create_reader(body: dict[str, str], db=Depends(get_connection)):
    query = "INSERT INTO readers (name) VALUES ($1) RETURNING *"
    reader = await db.fetchrow(query, body["name"])
    query = "INSERT INTO reader_emails VALUES ($1, $2)"
    await db.execute(query, body["email"], reader["id"])
    return dict(reader)


@app.get("/readers")
async def list_readers(db=Depends(get_connection)):
    rows = await db.fetch("SELECT * FROM readers")
    return [dict(row) for row in rows]


@app.get("/readers/{reader_id}")
async def get_reader(reader_id: int, db=Depends(get_connection)):
    return dict(await db.fetchrow("SELECT * FROM readers WHERE id = $1", reader_id))
