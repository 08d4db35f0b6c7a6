"""The file that tells which device each node is, by the key that it was registered with."""

from __future__ import annotations

import json
from pathlib import Path

from fedkit.core.errors import FleetError

NODES = "nodes.json"
"""Its name, in the folder of the server."""


def read_nodes(path: Path, devices: int) -> dict[int, int]:
    """Return device by node id.

    Args:
        path: The file.
        devices: Of the fleet; no device is beyond.

    Raises:
        FileNotFoundError: It is not there.
        FleetError: It was changed to something else.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        nodes = {int(node): device for node, device in given.items()}
        indices = sorted(nodes.values())
        whole = all(type(index) is int and 0 <= index < devices for index in indices)
        if not whole or len(set(indices)) < len(nodes):
            raise ValueError("two nodes are one device, or one is not of this fleet")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise FleetError(
            f"{path} does not say which node is which device ({error}); move server/{NODES} and "
            "server/flower.db away and start the server, which registers the devices anew"
        ) from error
    return nodes
