"""A small server of a live report, which answers and never acts.

It knows two paths, `/` and `/data`, and reads nothing by a name that a request has. Without a
token it answers this machine alone: by its loopback address, and only where the request asks for
that by name too, so that no other site can lead a browser here (DNS rebinding).
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fedkit.core.errors import ConfigError
from fedkit.fleet.address import is_loopback, join_address, parse_address
from fedkit.report import plotly_library
from fedkit.report.live import Live

_OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")

_SECONDS = 30
"""That a connection may say nothing."""

_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@contextmanager
def served(live: Live, address: str = "") -> Iterator[str]:
    """Serve a live page during the block; the server ends with it, and with this process.

    Args:
        live: What is shown.
        address: host:port to listen on; "" takes a free port of 127.0.0.1. One that other
            machines reach gets a token, without which nothing is shown.

    Yields:
        The address of the page.

    Raises:
        ConfigError: plotly is missing, or this machine cannot listen there.
    """
    plotly_library.require()
    host, port = parse_address(address) if address else ("127.0.0.1", 0)
    server = _listen(live, host, port)
    threading.Thread(target=server.serve_forever, args=(0.1,), name="live", daemon=True).start()
    try:
        asked = f"?token={server.token}" if server.token else ""
        yield f"http://{join_address(host, server.server_address[1])}/{asked}"
    finally:
        server.shutdown()
        server.server_close()


def _listen(live: Live, host: str, port: int) -> _Server:
    token = "" if is_loopback(host) else secrets.token_urlsafe(16)
    kind = _Server6 if ":" in host else _Server
    try:
        return kind((host, port), live, token)
    except OSError as error:
        raise ConfigError(
            f"this machine cannot listen on {join_address(host, port)}: {error.strerror}; give "
            "another address, or none for a free port of 127.0.0.1"
        ) from error


class _Server(ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], live: Live, token: str) -> None:
        self.live, self.token = live, token
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a reader that left in the middle is no fault of the run."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.0"  # a connection per request: none outlives the server
    server_version, sys_version = "fedkit", ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        """Answer with the page, or with what is new."""
        if not self._is_allowed():
            return self._answer(HTTPStatus.FORBIDDEN, "text/plain", _FORBIDDEN)
        path = urlsplit(self.path).path
        if path not in ("/", "/data"):
            return self._answer(HTTPStatus.NOT_FOUND, "text/plain", "There is / alone.\n")
        state = self.server.live.state()
        if path == "/":
            return self._answer(HTTPStatus.OK, "text/html", state.page)
        if self.headers.get("If-None-Match") == state.tag:
            return self._answer(HTTPStatus.NOT_MODIFIED, "application/json", "", state.tag)
        return self._answer(HTTPStatus.OK, "application/json", state.data, state.tag)

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "This page is only read.\n")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _is_allowed(self) -> bool:
        if self.server.token:
            given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
            return hmac.compare_digest(given.encode(), self.server.token.encode())
        host, colon, port = self.headers.get("Host", "").rpartition(":")
        named = host if colon and port.isdecimal() else f"{host}{colon}{port}"
        return named.lower() in _OWN_NAMES

    def _answer(self, status: HTTPStatus, kind: str, text: str, tag: str = "") -> None:
        content = text.encode()
        self.send_response(status)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
        for name, value in {**_HEADERS, **({"ETag": tag} if tag else {})}.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to the run."""


_FORBIDDEN = "Open the whole address that fedkit printed.\n"
