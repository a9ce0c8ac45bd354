"""`python -m tests.docs FOLDER`: every module's docstrings as HTML. A warning is an error."""

import pkgutil
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

import kpx


def render(folder: Path) -> None:
    """Write the pages. Raises whatever pdoc warns of."""
    for name in kpx.__all__:  # imported when asked for, and pdoc doesn't ask
        getattr(kpx, name)
    names = sorted(one.name for one in pkgutil.walk_packages(kpx.__path__, "kpx.") if one.name != "kpx.__main__")
    # pdoc adds a package's modules by itself, unless `__all__` says what there is.
    modules = [name for name in names if hasattr(import_module(name.rpartition(".")[0]), "__all__")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # pdoc looks for a NamedTuple's forward references in the wrong module, and shows their names all the same.
        warnings.filterwarnings(
            "ignore", r".*PydanticDataclass type annotation|.*annotation PydanticDataclass "
        )  # not ours
        warnings.filterwarnings("ignore", r"Error parsing type annotation ForwardRef\('(Trail|Inputs) \| None'\)")
        warnings.filterwarnings("ignore", r"Error processing type stub for kpx\.sources\.kube_pb2\.")  # generated
        pdoc.pdoc("kpx", *modules, output_directory=folder)


if __name__ == "__main__":
    render(Path(sys.argv[1]))
