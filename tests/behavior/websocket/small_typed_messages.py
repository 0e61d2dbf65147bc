"""websocket/typed_messages with short times, and items that misbehave."""

import asyncio

from recipes.websocket import typed_messages

typed_messages.TIME_LIMIT = 1
WELL = typed_messages.handle


async def handle(request: typed_messages.Price | typed_messages.Order) -> str:
    match request.item:
        case "bug":
            raise KeyError("no such column")
        case "hangs":
            print("hangs", flush=True)  # noqa: T201 - into the server's log
            await asyncio.Event().wait()
        case "long":
            return "x" * 200_000
    return await WELL(request)


typed_messages.handle = handle
app = typed_messages.app
