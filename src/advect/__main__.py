"""``python -m advect``: the command line."""

from advect.cli import main

if __name__ == "__main__":
    main()
