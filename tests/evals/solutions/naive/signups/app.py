# mypy: ignore-errors
"""Sends in a background task: what fails there, or is cut off there, is lost."""

import os
import uuid
from contextlib import asynccontextmanager

import asyncpg
import httpx2
from fastapi import BackgroundTasks, FastAPI, HTTPException
from pydantic import BaseModel, EmailStr


@asynccontextmanager
async def lifespan(app):
    app.state.pool = await asyncpg.create_pool(os.environ["DATABASE_URL"])
    await app.state.pool.execute(
        "CREATE TABLE IF NOT EXISTS signups (email text PRIMARY KEY)"
    )
    yield
    await app.state.pool.close()


app = FastAPI(lifespan=lifespan)


class SignUp(BaseModel):
    email: EmailStr


async def send_confirmation(email: str):
    async with httpx2.AsyncClient() as client:
        response = await client.post(
            f"{os.environ['MAIL_URL']}/send",
            json={"to": email},
            headers={"Idempotency-Key": str(uuid.uuid4())},
        )
        response.raise_for_status()


@app.post("/signups", status_code=202)
async def sign_up(data: SignUp, background_tasks: BackgroundTasks):
    try:
        await app.state.pool.execute("INSERT INTO signups VALUES ($1)", data.email)
    except asyncpg.UniqueViolationError:
        raise HTTPException(409, "Already signed up")
    background_tasks.add_task(send_confirmation, data.email)
    return {"email": data.email}
