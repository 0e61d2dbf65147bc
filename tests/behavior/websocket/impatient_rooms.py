"""websocket/rooms that waits for a send no longer than a moment."""

from recipes.websocket import rooms
from tests.behavior.websocket import small_rooms

rooms.SEND_SECONDS = 0.5  # type: ignore[assignment]
app = small_rooms.app
