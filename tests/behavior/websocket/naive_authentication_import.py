"""`HTTPException` is not imported, so each refusal is a NameError."""

from fastapi import Depends, FastAPI, WebSocket

app = FastAPI()


async def get_current_user(websocket: WebSocket):
    token = websocket.query_params.get("token")
    if token != "secret-of-ada":
        await websocket.close(code=1008)
        raise HTTPException(status_code=401, detail="Unauthorized")
    return "ada"


@app.websocket("/chat")
async def chat(websocket: WebSocket, user: str = Depends(get_current_user)):
    await websocket.accept()
    await websocket.send_text(f"Welcome {user}")
