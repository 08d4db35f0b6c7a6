"""Whose process is at the other end of a TCP connection on this machine.

Flower's programs talk to each other by TCP on the loopback interface, which every account of the
machine reaches. Linux says in `/proc/net/tcp` and `/proc/net/tcp6` to which account each socket
belongs; so orders can be taken from one account alone. Elsewhere nobody can be told from anybody,
and orders are refused.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]
End = tuple[str, int]
"""One end of a connection: a numeric address, and a port."""

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"


class OwnAccountOnly:
    """ASGI middleware: refuses with 403 what another account or machine may not ask for.

    Args:
        app: What answers.
        opened: Paths that everybody may ask for; one that ends in a slash stands for all below it.
    """

    def __init__(self, app: App, opened: tuple[str, ...] = ("/health",)) -> None:
        self._app, self._opened = app, opened

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or self._is_open(scope) or is_own(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            text = f"orders are taken from processes of account {os.geteuid()} of this machine only"
            await PlainTextResponse(f"{text}\n", 403)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        return any(path == each or (each[-1] == "/" and path.startswith(each))
                   for each in self._opened)  # fmt: skip


def is_own(scope: Scope) -> bool:
    """Whether a request comes by loopback from a process of the account that this one runs as."""
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None or not _address(client[0]).is_loopback:
        return False
    return account_of((client[0], client[1]), (server[0], server[1])) == os.geteuid()


def can_tell() -> bool:
    """Whether this system says to which account a connection belongs: Linux does."""
    return any(table.is_file() for table in _TABLES)


def account_of(client: End, server: End) -> int | None:
    """Return the user id that owns a connection's far end, None where that cannot be told.

    A socket that its process has closed belongs to nobody, though the kernel then shows it as
    root's; so only a connection that is whole, with a socket behind it, has an owner.
    """
    wanted = (_address(client[0]), client[1]), (_address(server[0]), server[1])
    for local, remote, state, uid, inode in _sockets():
        if state == _ESTABLISHED and inode != "0" and (_end(local), _end(remote)) == wanted:
            return int(uid)
    return None


def _sockets() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield local end, remote end, state, user id and inode of every TCP socket."""
    for table in _TABLES:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            yield fields[1], fields[2], fields[3], fields[7], fields[9]


def _end(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Read an end as the kernel writes it: words of its byte order in hexadecimal, and a port."""
    words, _, port = text.partition(":")
    data = bytes.fromhex(words)
    if sys.byteorder == "little":
        data = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    return _plain(ipaddress.ip_address(data)), int(port, 16)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return _plain(ipaddress.ip_address(host.partition("%")[0]))


def _plain(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address that a mapped one stands for."""
    return getattr(address, "ipv4_mapped", None) or address
