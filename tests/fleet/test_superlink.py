"""Orders are taken from the server's own account alone, on its own machine."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from fedkit.flower.peer import account_of
from fedkit.flower.superlink import OrdersFromHere

HERE = ("127.0.0.1", 8000)


def ask(
    path: str, client: Any, server: Any = HERE, kind: str = "http", keys: bool = True
) -> int | None:
    """The status of an answer, None where there is none; 200 is the application's."""
    statuses: list[int] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        statuses.append(200)

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": kind, "path": path, "client": client, "server": server, "headers": []}
    asyncio.run(OrdersFromHere(inside, keys)({**scope, "method": "POST"}, None, send))
    return statuses[0] if statuses else None


@contextmanager
def connected(address: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection: the client's, and the server's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        closing(socket.create_server((address, 0), family=family)) as server,
        closing(socket.create_connection(server.getsockname()[:2])) as client,
    ):
        taken, _ = server.accept()
        with closing(taken):
            yield client, taken


def ends(taken: socket.socket) -> tuple[tuple[str, int], tuple[str, int]]:
    return taken.getpeername()[:2], taken.getsockname()[:2]


ORDERS = ["/v1/control/register-node", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"]


@pytest.mark.parametrize("path", ORDERS)
def test_orders_are_taken_from_the_own_account_of_this_machine(path: str) -> None:
    assert ask(path, ("192.168.1.20", 4000)) == 403
    assert ask(path, ("fe80::1%eth0", 4000)) == 403
    assert ask(path, None) == 403
    assert ask(path, ("127.0.0.1", 4000), None) == 403
    for address in ("127.0.0.1", "::1"):
        with connected(address) as (_, taken):
            client, server = ends(taken)
            assert ask(path, client, server) == 200
            assert ask(path, (client[0], 1), server) == 403  # another's connection
            assert ask(path, (client[0], 0), server) == 403  # what X-Forwarded-For gives


def test_a_connection_without_a_process_behind_it_has_no_account() -> None:
    """The kernel shows a socket that was closed as root's."""
    with connected() as (client, taken):
        assert account_of(*ends(taken)) == os.geteuid()
        client.shutdown(socket.SHUT_WR)
        assert account_of(*ends(taken)) is None
    with connected() as (client, taken):
        both = ends(taken)
        client.close()
        assert account_of(*both) is None


def test_a_mapped_address_is_the_plain_one() -> None:
    with connected() as (_, taken):
        client, server = ends(taken)
        mapped = (f"::ffff:{client[0]}", client[1]), (f"::ffff:{server[0]}", server[1])
        assert account_of(*mapped) == os.geteuid()


CONNECT = """
import encodings.idna, os, socket, sys  # all there is to import, before the account changes
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as client:
    client.recv(1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another account")
def test_another_account_is_told_from_ones_own() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(600)
        child = subprocess.Popen([sys.executable, "-c", CONNECT, str(server.getsockname()[1])])
        taken, _ = server.accept()
        with closing(taken):
            client, here = ends(taken)
            assert account_of(client, here) == 65534
            assert ask("/v1/control/start-run", client, here) == 403
            taken.sendall(b"x")
        assert child.wait(600) == 0


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/register-node", "/health"])
def test_devices_with_keys_are_answered_wherever_they_are(path: str) -> None:
    assert ask(path, ("192.168.1.20", 4000)) == 200


def test_devices_without_keys_must_be_of_the_servers_account() -> None:
    assert ask("/v1/fleet/pull-messages", ("192.168.1.20", 4000), keys=False) == 403
    assert ask("/v1/fleet/pull-messages", ("127.0.0.1", 4000), keys=False) == 403
    with connected() as (_, taken):
        assert ask("/v1/fleet/pull-messages", *ends(taken), keys=False) == 200


@pytest.mark.parametrize(
    "path", ["/v1/fleet", "/v1/fleetx/", "//v1/fleet/x", "/health/", "/healthy/../v1/control/x", ""]
)
def test_a_path_that_only_looks_like_a_devices_is_refused(path: str) -> None:
    assert ask(path, ("192.168.1.20", 4000)) == 403


def test_what_is_no_request_passes_and_a_socket_of_the_web_does_not() -> None:
    assert ask("", None, kind="lifespan") == 200
    assert ask("/v1/control/start-run", ("192.168.1.20", 4000), kind="websocket") is None
