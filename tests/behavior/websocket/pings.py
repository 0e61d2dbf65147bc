"""uvicorn's WebSockets whose pings time out in a certain state, not after 40 s."""

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

UNREAD = 32 * 1024  # half of what makes a send wait


class WhenUnread(WebSocketsSansIOProtocol):
    """When the peer leaves much unread, while a send need not wait for it yet."""

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.transport.get_write_buffer_size() > UNREAD:
            self.keepalive_timeout()


class WhenFull(WebSocketsSansIOProtocol):
    """As soon as a send has to wait for the peer."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self.loop.call_soon(self.keepalive_timeout)
