"""The command line. It may import every package; nothing imports it."""

import os
import sys

from fedkit.cli.modules import in_the_way

__all__ = ["main"]


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
        # No Python that we start looks into the working folder before its own modules.
        os.environ["PYTHONSAFEPATH"] = "1"
        from fedkit.cli import app

        app.main()
