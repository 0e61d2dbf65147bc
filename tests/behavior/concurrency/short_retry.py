"""concurrency/retry with a deadline that ends the first attempt."""

from recipes.concurrency import retry

retry.DEADLINE = 1
app = retry.app
