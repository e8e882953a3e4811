"""Serves a page on this machine only, built again for every request."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from megatron.errors import ConfigError, UserError

HOST = "127.0.0.1"  # not reachable from other machines
WAITING = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{seconds:g}"><p>Waiting: {why}</p>'


def server(make: Callable[[], str], port: int, seconds: float) -> ThreadingHTTPServer:
    """A server of the page that `make` returns. While `make` raises UserError, a page shows its message instead.

    port: 0 for a free one. seconds: time after which a browser asks again. Raises ConfigError if the port is taken.
    """

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                self.send_error(404)
                return
            try:
                text = make()
            except UserError as error:
                text = WAITING.format(seconds=seconds, why=escape(str(error)))
            content = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Print no line for each request."""

    try:
        return ThreadingHTTPServer((HOST, port), Page)
    except OSError as error:
        raise ConfigError(f"--watch: port {port} cannot be used ({error.strerror}); name another one") from None
