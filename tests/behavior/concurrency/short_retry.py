"""concurrency/retry with a deadline that ends the first attempt."""

from recipes.concurrency import retry

retry.DEADLINE = 1.5  # type: ignore[assignment]  # below the timeout of one attempt
app = retry.app
