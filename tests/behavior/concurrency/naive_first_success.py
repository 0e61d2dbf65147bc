"""The original passes coroutines to `asyncio.wait`, which is a 500; with tasks, the first call that ends decides: a refused connection is a 500, an error page is the answer, and the losers still run when the response is sent."""

import asyncio
import os

import httpx2
from fastapi import FastAPI

app = FastAPI()


async def ask(client: httpx2.AsyncClient, url: str, currency: str):
    return await client.get(f"{url}/rates/{currency}")


@app.get("/coroutines/{currency}")
async def first_of_coroutines(currency: str):
    async with httpx2.AsyncClient() as client:
        calls = [ask(client, url, currency) for url in os.environ["RATE_URLS"].split()]
        done, pending = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return done.pop().result().json()


client = httpx2.AsyncClient()


@app.get("/rates/{currency}")
async def first_of_tasks(currency: str):
    tasks = [
        asyncio.create_task(ask(client, url, currency))
        for url in os.environ["RATE_URLS"].split()
    ]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return done.pop().result().json()
