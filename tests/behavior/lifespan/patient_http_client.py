"""lifespan/http_client with two connections, and time to spare on a busy machine."""

import httpx2

from recipes.lifespan import http_client

http_client.DEADLINE = 50
http_client.TIMEOUT = httpx2.Timeout(50, pool=0.5)
http_client.LIMITS = httpx2.Limits(max_connections=2)
app = http_client.app
