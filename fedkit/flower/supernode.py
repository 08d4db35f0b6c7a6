"""`flower-supernode`, but that it runs one app alone: the one of the fedkit that is installed here.

Anyone who gives orders to a SuperLink sends code to its devices, and Flower 1.41 runs what arrives.
Its trusted entities would refuse an app without a signature, but only Flower's own Hub hands out
signatures. A device of a fleet needs no code from anybody: the app is part of fedkit. So it
compares what arrives, file by file, with its own copy, and answers another app with an error.
An owner who has a further app for the devices names its SHA-256 in `device.toml`.

Flower's programs on a device talk by a loopback port; as at the server, only processes of the
device's own account are answered there (`fedkit.flower.peer`).

It stands on parts of `flwr.supernode` that are not public; flwr is pinned, and a test sends an app
of a stranger to a real SuperNode.
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from flwr.app.error import Error
from flwr.common.constant import ErrorCode
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.utils import get_flwr_home
from flwr.supernode import main as runtime
from flwr.supernode import start_client_internal as node
from flwr.supernode.cli.flower_supernode import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedkit.core.version import __version__
from fedkit.flower.peer import OwnAccountOnly

APP = Path(__file__).parent / "apps" / "board"
"""The Flower app of real devices; it is installed beside fedkit."""

FLAG = "--fedkit-app"
"""Flag of the SHA-256 of an app that may run too."""

REFUSAL = (
    f"this device runs the app of its own fedkit {__version__} alone, and was sent another; "
    "install the same fedkit here and at the server, or name the SHA-256 of that app as app in "
    "device.toml"
)


def app_digest(app: Path) -> str:
    """Return the SHA-256 of the bundle that Flower makes of an app's folder."""
    return hashlib.sha256(_bundle(app)).hexdigest()


def is_shipped(fab: bytes) -> bool:
    """Whether an app's bundle holds the files of `APP` and nothing else."""
    try:
        return _files(fab) == _files(_bundle(APP))
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, EOFError,
            zlib.error):  # fmt: skip
        return False


def _bundle(app: Path) -> bytes:
    from flwr.cli.build import build_fab_from_disk  # takes memory that a device seldom needs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's, of how it matches names
        return build_fab_from_disk(app)


def _files(fab: bytes) -> dict[str, bytes]:
    """Return the files of a bundle by name.

    Raises:
        ValueError: A name stands there twice, or a file is larger than any of ours.
    """
    with zipfile.ZipFile(io.BytesIO(fab)) as bundle:
        entries = bundle.infolist()
        if len({each.filename for each in entries}) < len(entries):
            raise ValueError("a name stands there twice")
        if max((each.file_size for each in entries), default=0) > 2**20:
            raise ValueError("a file is too large")
        return {each.filename: bundle.read(each) for each in entries}


def accepts(fab: Fab, digest: str = "") -> bool:
    """Whether a device may run an app: `APP`, or the one whose SHA-256 is `digest`."""
    found = hashlib.sha256(fab.content).hexdigest()
    if found == digest or is_shipped(fab.content):
        return True
    print(f"refused the app {found[:16]}: {REFUSAL}", file=sys.stderr, flush=True)
    return False


def run_one_app_only(digest: str) -> None:
    """Have Flower ask `accepts` before it stores an app, as it asks its trusted entities."""
    pull: Callable[..., int | None] = node._pull_and_store_message

    def checked(*, get_fab: Callable[[str, int], Fab], **given: Any) -> int | None:
        def marked(name: str, run: int) -> Fab:
            fab = get_fab(name, run)
            # Without this mark Flower does not come to the check of the signature.
            return Fab(fab.hash_str, fab.content, {"valid_license": "fedkit"})

        return pull(get_fab=marked, **{**given, "trusted_entities": {"fedkit": ""}})

    replaced: Any = node
    replaced._pull_and_store_message = checked
    replaced._verify_fab = lambda fab, trusted: accepts(fab, digest)
    replaced.FAB_VERIFICATION_ERROR = Error(ErrorCode.INVALID_FAB, REFUSAL)


def answer_own_account_only() -> None:
    """Have Flower's port on this device answer processes of its own account alone."""
    create: Callable[..., Any] = runtime.create_app

    def create_app(*arguments: Any, **given: Any) -> Any:
        app = create(*arguments, **given)
        app.add_middleware(OwnAccountOnly)  # the last one added is asked first
        return app

    runtime.create_app = create_app


def outlast_own_ghost(home: Path) -> None:
    """Have a device wait where the server takes it for connected still, as after a power cut.

    Flower refuses a second node with one key until it has missed the first one's signs of life for
    a minute. Only a device that was let in before waits; another is refused at once.

    Args:
        home: Folder of Flower's files, which keeps that it was let in.
    """
    client: Any = FleetHttpClient
    activate, known = client.ActivateNode, home / "let-in"

    def patiently(self: Any, request: Any) -> Any:
        deadline = time.monotonic() + _GHOST_SECONDS
        while True:
            try:
                answer = activate(self, request)
            except httpx.HTTPStatusError as error:
                if not (known.exists() and _is_taken(error)) or time.monotonic() > deadline:
                    raise
                print(GHOST, file=sys.stderr, flush=True)
                time.sleep(_GHOST_PAUSE)
            else:
                known.touch()
                return answer

    client.ActivateNode = patiently


_GHOST_SECONDS, _GHOST_PAUSE = 90.0, 5.0

GHOST = (
    "the server does not let this device in: it was ended less than a minute ago and counts as "
    "connected still, another one has its key, or its key was revoked; trying again"
)


def _is_taken(error: httpx.HTTPStatusError) -> bool:
    found = FlowerError.from_json(error.response.text)
    return found is not None and found.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED


def main() -> None:
    """Run `flower-supernode` with its own command line, behind `--fedkit-app SHA256` if given."""
    digest = ""
    if sys.argv[1:2] == [FLAG]:
        _, digest = sys.argv.pop(1), sys.argv.pop(1)
    run_one_app_only(digest)
    answer_own_account_only()
    outlast_own_ghost(get_flwr_home())
    flower_supernode()


if __name__ == "__main__":
    main()
