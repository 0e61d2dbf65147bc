"""Loses a seat when the ticket cannot be stored, and sells the last seat twice."""

import os
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from tortoise import fields
from tortoise.contrib.fastapi import RegisterTortoise
from tortoise.models import Model


class Concert(Model):
    id = fields.IntField(primary_key=True)
    seats = fields.IntField()


class ConcertTicket(Model):
    email = fields.CharField(max_length=254, primary_key=True)
    concert_id = fields.IntField()


class NewTicket(BaseModel):
    email: str


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with RegisterTortoise(
        app,
        db_url=os.environ["DATABASE_URL"],
        modules={"models": [__name__]},
        generate_schemas=True,
    ):
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/concerts/{concert_id}/tickets", status_code=201)
async def buy(concert_id: int, new: NewTicket):
    concert = await Concert.get(id=concert_id)
    if not concert.seats:
        raise HTTPException(409, "Sold out")
    concert.seats -= 1
    await concert.save()
    await ConcertTicket.create(concert_id=concert_id, email=new.email)
    return {"seats": concert.seats}
