"""concurrency/first_success with time to spare and few connections."""

import httpx2

from recipes.concurrency import first_success

first_success.DEADLINE = 30
first_success.LIMITS = httpx2.Limits(max_connections=5, max_keepalive_connections=5)
app = first_success.app
