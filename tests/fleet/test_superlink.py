"""Orders are taken from the server itself alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fedkit.flower.superlink import OrdersFromHere


def ask(path: str, client: Any, kind: str = "http") -> int:
    """The status of an answer; 200 is the application's."""
    statuses: list[int] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        statuses.append(200)

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": kind, "path": path, "client": client, "headers": [], "method": "POST"}
    asyncio.run(OrdersFromHere(inside)(scope, None, send))
    return statuses[0]


ORDERS = ["/v1/control/register-node", "/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"]


@pytest.mark.parametrize("path", ORDERS)
def test_orders_of_another_machine_are_refused(path: str) -> None:
    assert ask(path, ("192.168.1.20", 4000)) == 403
    assert ask(path, ("fe80::1", 4000)) == 403
    assert ask(path, None) == 403
    assert ask(path, ("127.0.0.1", 4000)) == 200
    assert ask(path, ("::1", 4000)) == 200


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/register-node", "/health"])
def test_devices_are_answered_wherever_they_are(path: str) -> None:
    assert ask(path, ("192.168.1.20", 4000)) == 200


def test_a_path_that_only_looks_like_a_devices_is_refused() -> None:
    for path in ("/v1/fleet", "/v1/fleetx/", "//v1/fleet/x", "/healthy/../v1/control/start-run"):
        assert ask(path, ("192.168.1.20", 4000)) in (200, 403)
        assert path.startswith("/health") or ask(path, ("192.168.1.20", 4000)) == 403


def test_what_is_no_request_passes() -> None:
    assert ask("", None, kind="lifespan") == 200
