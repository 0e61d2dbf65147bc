"""The recipe with a pool of 2."""

import os

from recipes.databases import tortoise_orm

tortoise_orm.POOL_SIZE = 2
tortoise_orm.POOL_TIMEOUT = int(os.environ.get("POOL_TIMEOUT", "30"))
tortoise_orm.LIMITS["maxsize"] = 2
seconds = os.environ.get("STATEMENT_TIMEOUT", "30s")
tortoise_orm.SETTINGS["statement_timeout"] = seconds
app = tortoise_orm.app
