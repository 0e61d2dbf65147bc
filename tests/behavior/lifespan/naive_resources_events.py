"""The same with `on_event`, deprecated: and with `lifespan=` it silently does nothing."""

from fastapi import FastAPI

from tests.behavior.lifespan.naive_resources import create_db_pool, take_lease

app = FastAPI()


@app.on_event("startup")
async def open_database():
    app.state.db = await create_db_pool()


@app.on_event("startup")
async def open_lease():
    app.state.worker = await take_lease(app.state.db)


@app.on_event("shutdown")
async def close_database():
    app.state.db.close()
