"""A bad message or a binary frame closes the socket, and an unknown type gets no answer."""

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()
PRICES = {"tea": 250, "coffee": 300}


@app.websocket("/orders")
async def orders(websocket: WebSocket):
    await websocket.accept()
    try:
        while True:
            message = await websocket.receive_json()
            kind = message.get("type")
            if kind == "price":
                cents = PRICES.get(message.get("item"))
                await websocket.send_json({"type": "price", "cents": cents})
            elif kind == "order":
                cents = PRICES.get(message.get("item")) * message.get("quantity")
                await websocket.send_json({"type": "ordered", "cents": cents})
    except WebSocketDisconnect:
        print("Client disconnected")
