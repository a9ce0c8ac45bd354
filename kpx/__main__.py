"""`python -m kpx`, and the program `kpx`."""

import sys

from kpx import early


def main() -> None:
    """Run the command line."""
    early.listen(sys.argv[1:])
    from kpx.cli import main as run

    run()


if __name__ == "__main__":
    main()
