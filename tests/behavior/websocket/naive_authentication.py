"""The token is in the access log, any page may connect, and a logout ends no open socket;
a token without a name crashes the handler, and each refusal logs a traceback."""

from fastapi import Depends, FastAPI, HTTPException, WebSocket, WebSocketDisconnect
from fastapi.middleware.cors import CORSMiddleware

app = FastAPI()
app.add_middleware(CORSMiddleware, allow_origins=["http://127.0.0.1:8000"])
TOKENS = {
    "secret-of-ada": {"name": "ada"},
    "secret-of-bob": {"email": "bob@example.com"},
}


async def get_current_user(websocket: WebSocket):
    token = websocket.query_params.get("token")
    if token not in TOKENS:
        await websocket.close(code=1008)
        raise HTTPException(status_code=401, detail="Unauthorized")
    return TOKENS[token]


@app.websocket("/chat")
async def chat(websocket: WebSocket, user: dict = Depends(get_current_user)):
    await websocket.accept()
    try:
        while True:
            text = await websocket.receive_text()
            await websocket.send_text(f"{user['name']}: {text}")
    except WebSocketDisconnect:
        print("Client disconnected")


@app.post("/logout")
async def logout(token: str):
    del TOKENS[token]
