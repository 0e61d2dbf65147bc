"""concurrency/bounded with a short deadline, or a short timeout of each call."""

import os
from functools import partial

import httpx2

from recipes.concurrency import bounded

if "TIMEOUT" in os.environ:
    httpx2.AsyncClient = partial(httpx2.AsyncClient, timeout=0.2)  # type: ignore[assignment,misc]
else:
    bounded.DEADLINE = 1
app = bounded.app
