"""`flower-superlink`, but that only the account it runs as may give it orders.

Flower 1.41 serves devices (`/v1/fleet`) and orders (`/v1/control`: start a run, register a key;
`/v1/runtime`: what a run's own processes ask) on one port. Its free edition has no accounts, so
anybody who reaches that port may give orders, and an order is code: it runs as the account of the
server. So here orders are answered to processes of that same account alone, on this machine
(`fedkit.flower.peer`). Without keys of devices (`--insecure`) that holds for devices too. Where a
system does not tell accounts apart, orders to a fleet are refused; a simulation runs, and warns.

It stands on `flwr.superlink.extensions.get_middleware`, which is not public; flwr is pinned, and a
test asks a real SuperLink as another account.
"""

from __future__ import annotations

import sys

from flwr.superlink import extensions
from flwr.superlink.cli.flower_superlink import flower_superlink
from starlette.middleware import Middleware

from fedkit.flower.peer import App, OwnAccountOnly, can_tell

HEALTH, DEVICES = "/health", "/v1/fleet/"
"""What others may ask for: whether it is up; and with keys, what devices ask."""


class OrdersFromHere(OwnAccountOnly):
    """Refuses with 403 what other accounts and machines may not ask of a SuperLink.

    Args:
        app: The SuperLink.
        keys: Whether it knows devices by their keys; without, they must be of its own account.
    """

    def __init__(self, app: App, keys: bool = True) -> None:
        super().__init__(app, (HEALTH, DEVICES) if keys else (HEALTH,))


def main() -> None:
    """Run `flower-superlink` with its own command line."""
    if can_tell() or "--simulation" not in sys.argv:
        given, keys = extensions.get_middleware, "--enable-supernode-auth" in sys.argv
        extensions.get_middleware = lambda: (Middleware(OrdersFromHere, keys=keys), *given())
    else:
        print(
            "warning: this system does not tell accounts apart; until this simulation has ended, "
            "every account of this machine can run code as this one",
            file=sys.stderr,
        )
    flower_superlink()


if __name__ == "__main__":
    main()
