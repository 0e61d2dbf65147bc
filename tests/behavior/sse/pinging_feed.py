"""sse/feed with FastAPI's keep-alive every 50 ms in the place of 15 s."""

from fastapi import routing

from recipes.sse import feed

vars(routing)["_PING_INTERVAL"] = 0.05  # there is no public setting
app = feed.app
