"""One task after the other: the first that fails or hangs takes the rest with it."""

import asyncio

from fastapi import BackgroundTasks, FastAPI

app = FastAPI()


async def send_mail(email: str, note: str):
    await asyncio.sleep(0.05)
    print(f"Mail to {email}: {note}")


async def count_share():
    await asyncio.sleep(0.05)


@app.post("/shares")
async def share(email: str, note: str, background: BackgroundTasks):
    background.add_task(send_mail, email, note)
    background.add_task(count_share)
    return {"status": "The mail will be sent"}
