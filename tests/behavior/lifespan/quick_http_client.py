"""lifespan/http_client with two connections, where only the deadline ends a call."""

import httpx2

from recipes.lifespan import http_client

http_client.DEADLINE = 1.5
http_client.TIMEOUT = httpx2.Timeout(50)
http_client.LIMITS = httpx2.Limits(max_connections=2)
app = http_client.app
