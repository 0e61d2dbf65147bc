"""Does not start, because `app.models` is not the module that has the models; and `pk=`
is deprecated."""

import os

from fastapi import FastAPI, HTTPException
from tortoise import fields
from tortoise.contrib.fastapi import register_tortoise
from tortoise.models import Model

app = FastAPI()
register_tortoise(
    app,
    db_url=os.environ["DATABASE_URL"],
    modules={"models": ["app.models"]},
    generate_schemas=True,
)


class Concert(Model):
    id = fields.IntField(pk=True)
    seats = fields.IntField()


@app.get("/concerts/{concert_id}")
async def get_concert(concert_id: int):
    concert = await Concert.get_or_none(id=concert_id)
    if not concert:
        raise HTTPException(404, "No such concert")
    return concert
