"""The command line. It may import every package; nothing imports it."""

import os
import sys

from fedkit.cli.modules import in_the_way

__all__ = ["main"]

_SAFE_PATH = "PYTHONSAFEPATH"
"""No Python that a command starts looks into the working folder before its own modules."""


def main() -> None:
    """Entry point: a `FedkitError` is printed as one message with its exit code, 2 as a rule."""
    if found := in_the_way():
        sys.stderr.write(f"error: {found}\n")
        sys.exit(2)
    from fedkit.core import signals

    with signals.ended_by_signals():
        # From here on a signal ends the command in good order, also while all this is imported.
        from fedkit.core import supervise

        supervise.guard()
        from fedkit.cli import app

        before = os.environ.get(_SAFE_PATH)
        os.environ[_SAFE_PATH] = "1"
        try:
            app.main()
        finally:
            del os.environ[_SAFE_PATH]
            if before is not None:
                os.environ[_SAFE_PATH] = before
