"""Files of a server: which device each node is, by its key, and what people call the devices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedkit.core.errors import FleetError
from fedkit.core.files import write_atomic
from fedkit.core.text import cut

NODES, NAMES = "nodes.json", "names.json"
"""Their names, in the folder of the server."""


def read_nodes(path: Path, devices: int = 2**63) -> dict[int, int]:
    """Return device by node id.

    Args:
        path: The file.
        devices: Of the fleet; no device is beyond. A run may be of fewer, before one was added.

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


def write_nodes(path: Path, nodes: Mapping[int, int]) -> None:
    """Write device by node id."""
    _write(path, nodes)


def write_names(path: Path, names: Mapping[int, str]) -> None:
    """Write the name of each device."""
    _write(path, names)


def read_names(path: Path) -> dict[int, str]:
    """Return the name of each device; nothing where that file is not there or is damaged."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        return {int(device): cut(str(name), _LONGEST_NAME) for device, name in given.items()}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


_LONGEST_NAME = 100


def _write(path: Path, given: Mapping[int, int] | Mapping[int, str]) -> None:
    text = json.dumps({str(key): value for key, value in given.items()}, indent=2)
    write_atomic(path, f"{text}\n".encode(), 0o600)
