"""`python -m fedkit` is the command `fedkit`."""

from fedkit.cli import main

if __name__ == "__main__":
    main()
