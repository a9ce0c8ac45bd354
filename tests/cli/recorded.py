"""`python -m tests.cli.recorded FILE ARGUMENTS`: `kpx ARGUMENTS`, and the modules that it had imported by its end."""

import atexit
import sys


def write(file: str) -> None:
    """Write the names of all modules, a line each."""
    with open(file, "w") as out:
        out.writelines(f"{name}\n" for name, module in sys.modules.items() if module is not None)


if __name__ == "__main__":
    atexit.register(write, sys.argv.pop(1))
    from kpx.__main__ import main

    main()
