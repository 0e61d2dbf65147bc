"""databases/concurrent_writes with a short wait for a lock."""

from recipes.databases import concurrent_writes

concurrent_writes.COMMAND_TIMEOUT = 0.5
app = concurrent_writes.app
