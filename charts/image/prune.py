"""Takes out of an environment what kpx never imports: `python prune.py SITE-PACKAGES`, a step of the Dockerfile.

Of the kubernetes package kpx uses how to find and sign in to an API server (`kpx/sources/client.py`); objects are
models of its own. The client generated from the API's description is 115 of the package's 119 MB, and what its
synchronous half needs, requests and others, 5 MB more. rich brings Pygments, which knows how to colour 500 languages;
kpx shows none. pydantic has its first version on board.

`/*` leaves a package, which others import, without its modules. A path that isn't there is an error: then the list is
out of date. tests/chart/test_image.py runs kpx from what is left.
"""

import shutil
import sys
from collections.abc import Iterator
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
    "kubernetes/aio/client/models/*",
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


def unused(packages: Path) -> Iterator[Path]:
    """The folders and files to delete. Raises FileNotFoundError."""
    for name in UNUSED:
        package = packages / name.removesuffix("/*")
        found = list(package.iterdir())
        yield from (one for one in found if one.name != "__init__.py") if name.endswith("/*") else (package,)


def prune(packages: Path) -> None:
    """Delete them. Raises FileNotFoundError."""
    for path in list(unused(packages)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    prune(Path(sys.argv[1]))
