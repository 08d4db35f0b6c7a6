"""`flower-superlink`, but that only this machine may give it orders.

Flower 1.41 serves devices (`/v1/fleet`) and orders (`/v1/control`: start a run, register a key;
`/v1/runtime`: what a run's own processes ask) on one port. Without Flower's accounts anybody who
reaches that port may give orders, which makes keys of devices worth nothing. So here they are
answered to the loopback interface alone.

It stands on `flwr.superlink.extensions.get_middleware`, which is not public; flwr is pinned, and a
test asks a real SuperLink from another address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flwr.superlink import extensions
from flwr.superlink.cli.flower_superlink import flower_superlink
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

OPEN = ("/v1/fleet/", "/health")
"""What other machines may ask for."""


class OrdersFromHere:
    """ASGI middleware: refuses with 403 what other machines may not ask for."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or _allowed(scope):
            await self._app(scope, receive, send)
            return
        refusal = PlainTextResponse("orders are taken from the server itself only\n", 403)
        await refusal(scope, receive, send)


def _allowed(scope: Scope) -> bool:
    path, client = scope["path"], scope.get("client")
    if path.startswith(OPEN):
        return True
    return client is not None and ipaddress.ip_address(client[0]).is_loopback


def main() -> None:
    """Run `flower-superlink` with its own command line."""
    given = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(OrdersFromHere), *given())
    flower_superlink()


if __name__ == "__main__":
    main()
