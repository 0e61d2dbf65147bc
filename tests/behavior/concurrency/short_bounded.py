"""concurrency/bounded with a deadline that a test can wait for."""

from recipes.concurrency import bounded

bounded.DEADLINE = 1
app = bounded.app
