"""`python -m fedkit` is the command `fedkit`."""

import os
import sys

if __name__ == "__main__":
    # `-m` puts the current folder before Python's own modules, where a file named like one of them,
    # or like one of ours, would take its place. A checkout that is not installed needs it last.
    if not sys.flags.safe_path:
        here = sys.path.pop(0)
        if os.path.abspath(here) == os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
            sys.path.append(here)
    from fedkit.cli import main

    main()
