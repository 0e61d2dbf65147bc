"""sse/feed with a ring that is soon full."""

from recipes.sse import feed

HISTORY = feed.HISTORY = 10
app = feed.app
