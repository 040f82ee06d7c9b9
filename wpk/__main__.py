"""``python -m wpk``: the command line."""

from wpk.cli import main

if __name__ == "__main__":
    main()
