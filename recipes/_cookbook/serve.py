"""`recipes serve`: servers, site and live recipes, on one port."""

import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from rich.console import Console

from recipes._cookbook import servers
from recipes._cookbook.catalogue import ROOT, SERVER_VARIABLES
from recipes._cookbook.live import live_app

GRACE_SECONDS = 1  # an open stream may not hold up Ctrl-C
STOP_SECONDS = 2.5


class ServeError(servers.ServerError):
    """The site cannot be served; the message is one line that says what to do."""


def serve(host: str, port: int, console: Console) -> None:
    """Build and serve the site until SIGINT or SIGTERM.

    Raises:
        ServeError: The address is taken, or the site does not build.
    """
    with _listener(host, port) as listener, tempfile.TemporaryDirectory() as folder:
        url = _url(host, listener.getsockname()[1])
        site = Path(folder, "site")
        with _starting(console) as found:
            for complaint in build_site(site, url):
                console.print(f"[yellow]![/] {complaint}", markup=True)
            console.print("[green]✓[/] site")
            _serve(listener, url, site, found, console)


@contextmanager
def _starting(console: Console) -> Iterator[servers.Servers]:
    names = ", ".join(servers.KINDS[name].label for name in SERVER_VARIABLES)
    console.print(f"Starting {names} …")
    with servers.available(SERVER_VARIABLES) as found:
        for name in SERVER_VARIABLES:
            label = servers.KINDS[name].label
            if name in found.errors:
                console.print(f"[red]✗[/] {label}: {found.errors[name]}")
            else:
                is_given = os.environ.get(name)
                source = f"{name} is set" if is_given else found.urls[name]
                console.print(f"[green]✓[/] {label}: {source}")
        yield found


@contextmanager
def _listener(host: str, port: int) -> Iterator[socket.socket]:
    """Bind before the slow work, so that a taken port is told at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):  # the second for a label that is too long
        raise ServeError(f"There is no host {host!r}. Try another `--host`.") from None
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        message = f"Cannot serve on {host}:{port}: {reason}. Try another `--port`."
        raise ServeError(message) from None
    with listener:
        yield listener


def _url(host: str, port: int) -> str:
    """The address to open; a wildcard address cannot be opened."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - shown
    if ":" in shown and not shown.startswith("["):
        shown = f"[{shown}]"
    return f"http://{shown}:{port}/"


def build_site(site: Path, url: str) -> list[str]:
    """Build the pages into `site` for the address `url`; what is wrong with them.

    A page with a fault is no reason to show none: CI builds strictly.

    Raises:
        ServeError: There is no site; with what mkdocs complains about.
    """
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import MkDocsException

    complaints = _Complaints()
    logging.getLogger("mkdocs").addHandler(complaints)
    try:
        # Instant navigation works only where site_url is the address served.
        config = load_config(
            str(ROOT / "mkdocs.yml"), site_dir=str(site), site_url=url, strict=False
        )
        build(config)
    except MkDocsException as error:
        reason = "; ".join(complaints.lines) or str(error)
        raise ServeError(f"The site does not build: {reason}") from None
    finally:
        logging.getLogger("mkdocs").removeHandler(complaints)
    return complaints.lines


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


def _serve(
    listener: socket.socket,
    url: str,
    site: Path,
    found: servers.Servers,
    console: Console,
) -> None:
    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                console.print(f"\nReady: [bold]{url}[/]  (Ctrl-C stops it)")

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            console.print("Stopping …")
            # Streams that are cut off now would be logged with their tracebacks.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            with _alarm():
                await super().shutdown(sockets)

    config = uvicorn.Config(
        live_app(site, found, stopping=lambda: server.should_exit),
        log_level="warning",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = Server(config)
    server.run(sockets=[listener])


@contextmanager
def _alarm() -> Iterator[None]:
    """Break off a recipe that blocks the event loop in its shutdown."""
    if not hasattr(signal, "setitimer"):  # Windows
        yield
        return

    def break_off(*_: object) -> None:
        raise SystemExit(1)

    signal.signal(signal.SIGALRM, break_off)
    signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
