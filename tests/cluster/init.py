"""The first process of a namespace: says `ready`, reaps orphans, and ends when its stdin is closed.

Runs alone (`python -I init.py`). With it ends everything in the namespace: that is how the kernel has it. Its stdin is
a pipe from the harness, which the kernel closes when that ends, however it ends.
"""

import os
import select
import sys


def main() -> None:
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
