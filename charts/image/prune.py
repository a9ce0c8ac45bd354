"""Takes out of an environment what kpx never imports: `python prune.py SITE-PACKAGES`, a step of the Dockerfile.

Of the kubernetes package kpx uses how to find and sign in to an API server (`kpx/sources/client.py`); objects are
models of its own. The client generated from the API's description is 115 of the package's 119 MB, and what its
synchronous half needs, requests and others, 5 MB more. rich brings Pygments, which knows how to colour 500 languages;
kpx shows none. pydantic has its first version on board.

A path that isn't there is an error: then the list is out of date. tests/chart/test_image.py runs kpx from what is left.
"""

import shutil
import sys
from pathlib import Path

UNUSED = (
    "charset_normalizer",
    "kubernetes/client",
    "kubernetes/dynamic",
    "kubernetes/informer",
    "kubernetes/leaderelection",
    "kubernetes/stream",
    "kubernetes/utils",
    "kubernetes/watch",
    "kubernetes/aio/client/api",
    "kubernetes/aio/client/models",
    "kubernetes/aio/dynamic",
    "kubernetes/aio/leaderelection",
    "kubernetes/aio/stream",
    "kubernetes/aio/watch",
    "oauthlib",
    "pydantic/v1",
    "pygments/formatters",
    "pygments/lexers",
    "pygments/styles",
    "requests",
    "requests_oauthlib",
    "urllib3",
    "websocket",
)


def prune(packages: Path) -> None:
    """Delete them. Raises FileNotFoundError."""
    for name in UNUSED:
        shutil.rmtree(packages / name)


if __name__ == "__main__":
    prune(Path(sys.argv[1]))
