"""Who sends a newer value cancels everyone else's save, even one that has started: a 500
for their requests, and their text is lost."""

import asyncio

from fastapi import Body, FastAPI

app = FastAPI()
drafts = {}


class Debouncer:
    def __init__(self, delay: float):
        self.delay = delay
        self.task = None

    async def debounce(self, coro):
        if self.task:
            self.task.cancel()

        async def delayed():
            await asyncio.sleep(self.delay)
            await coro

        self.task = asyncio.create_task(delayed())
        await self.task


debouncer = Debouncer(delay=0.5)


async def save(name: str, text: str):
    await asyncio.sleep(0.1)
    drafts[name] = text


@app.put("/drafts/{name}")
async def write_draft(name: str, text: str = Body(embed=True)):
    await debouncer.debounce(save(name, text))
    return {"saved": True}
