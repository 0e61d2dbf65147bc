"""The task lives in the memory of the process: a crash or a deploy loses it, after the
202, and so does one error; nothing tries again."""

import asyncio
import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import BackgroundTasks, FastAPI, Request


@asynccontextmanager
async def lifespan(app):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1) as pool:
        await pool.execute("""
            CREATE TABLE IF NOT EXISTS outbox_orders (id bigserial PRIMARY KEY, item text)
        """)
        yield {"pool": pool}


app = FastAPI(lifespan=lifespan)


async def send(key: int, email: str, message: str):
    await asyncio.sleep(0.05)


@app.post("/orders", status_code=202)
async def create_order(request: Request, body: dict[str, str], tasks: BackgroundTasks):
    query = "INSERT INTO outbox_orders (item) VALUES ($1) RETURNING id"
    order_id = await request.state.pool.fetchval(query, body["item"])
    message = f"Order {order_id}: {body['item']}"
    tasks.add_task(send, order_id, body["email"], message)
    return {"order_id": order_id}
