"""A blocking call in `async def`: until it returns, no other request is answered."""

import queue

from fastapi import FastAPI, HTTPException

app = FastAPI()
cards: queue.Queue[int] = queue.Queue()


@app.get("/card")
async def card():
    print("Present a card.", flush=True)
    try:
        return cards.get(timeout=1)
    except queue.Empty:
        raise HTTPException(504, "Nobody presented a card.")


@app.post("/cards/{card}", status_code=204)
async def present(card: int):
    cards.put(card)


@app.get("/ping")
async def ping():
    return "pong"
