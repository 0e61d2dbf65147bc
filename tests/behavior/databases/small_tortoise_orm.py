"""The recipe with a pool of 2. `/wrong` asks with an argument that is no id."""

import os

from fastapi import Request

from recipes.databases import tortoise_orm

tortoise_orm.POOL_SIZE = 2
tortoise_orm.POOL_TIMEOUT = float(os.environ.get("POOL_TIMEOUT", "30"))
tortoise_orm.LIMITS["maxsize"] = 2
seconds = os.environ.get("STATEMENT_TIMEOUT", "30s")
tortoise_orm.SETTINGS["statement_timeout"] = seconds
app = tortoise_orm.app


@app.get("/wrong")
async def wrong(request: Request) -> None:
    async with tortoise_orm.transaction(request):
        await tortoise_orm.Concert.get_or_none(id=2**40)
