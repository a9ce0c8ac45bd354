"""Times the compiler without reading and printing, in a process of its own: DUMP CONFIG."""

import gc
import sys
import time
from pathlib import Path

import kpx
from kpx.sources import manifests


def main(dump: str, config_file: str) -> None:
    """Print how long `kpx.compile` takes for the objects of a dump."""
    objects = manifests.load([dump]).objects
    config, _ = kpx.parse_config(Path(config_file).read_bytes())
    gc.disable()  # as the command line does
    start = time.perf_counter()
    kpx.compile(objects, config)
    print(f"{time.perf_counter() - start:.2f} s")


main(*sys.argv[1:])
