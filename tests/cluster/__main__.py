"""`python -m tests.cluster --bin DIR`: a cluster of real programs, and a table of what was seen on it."""

import datetime
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from kpx.version import __version__
from tests.cluster import beside, churn, life, migration, tools, ways_in
from tests.cluster.binaries import Binaries, MissingError, find
from tests.cluster.cluster import HIDDEN, Cluster, Wanted
from tests.cluster.plan import Group, run, select
from tests.cluster.table import MARKS, Line, into, markdown
from tests.lab import LabError

BUILD = Path("build")
README = Path(__file__).with_name("README.md")


@click.command()
@click.option("--bin", "folder", envvar="KUBE_BIN", type=click.Path(path_type=Path), help="Folder of the programs.")
@click.option(
    "--image",
    type=click.Path(path_type=Path),
    default=BUILD / "kpx-image.tar",
    show_default=True,
    help="kpx's image, as `make image` builds it.",
)
@click.option("--only", multiple=True, metavar="GROUP", help="A group of claims alone. May be repeated.")
@click.option("--services", default=churn.Size.services, show_default=True, help="How many Services churn.")
@click.option("--changes", default=churn.Size.changes, show_default=True, help="How often these change.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=BUILD / "cluster",
    show_default=True,
    help="Where the table and logs go.",
)
@click.option("--readme", is_flag=True, help="Put the table into tests/cluster/README.md, too.")
@click.option("--check", is_flag=True, help="Only look whether all programs are there.")
def main(
    folder: Path | None,
    image: Path,
    only: tuple[str, ...],
    services: int,
    changes: int,
    output: Path,
    readme: bool,
    check: bool,
) -> None:
    """Start a cluster, look at everything, end it.

    Exit status: 0 all was as it should be, 1 something wasn't, 2 it can't be started.
    """
    console = Console()
    every = groups_of(churn.Size(services, changes))
    wanted, groups = _prepare(folder, image, every, only, output, check)
    if check:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    lines: list[Line] = []
    try:
        with Cluster(wanted, console) as cluster:
            for line in run(groups, cluster):
                lines.append(line)
                text = f"{MARKS[line.fine]} {line.claim}: {line.seen}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)
    except LabError as error:
        raise _refusal(f"the cluster can't be started: {error}") from error
    except KeyboardInterrupt:
        console.print("interrupted; everything has ended and is removed")
    finally:
        table = markdown(lines, facts(wanted.binaries))
        output.mkdir(parents=True, exist_ok=True)
        (output / "table.md").write_text(table)
        if readme:
            README.write_text(into(README.read_text(), table))
    console.print(f"{sum(line.fine for line in lines)} of {len(lines)} as they should be; {output / 'table.md'}")
    whole = len(lines) == sum(len(group.claims) for group in groups)
    sys.exit(0 if whole and all(line.fine for line in lines) else 1)


def _interrupt(*_: object) -> None:
    """End the run. Further signals don't stop its clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def facts(binaries: Binaries) -> dict[str, str]:
    """What a run was made with."""
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "kpx": __version__, **binaries.versions, "machine": machine}


def groups_of(size: churn.Size) -> list[Group[Cluster]]:
    """All claims, in their order: churn is the last, since it leaves thousands of Services."""
    return [migration.GROUP, ways_in.GROUP, life.GROUP, tools.GROUP, beside.GROUP, churn.group(size)]


def _prepare(
    folder: Path | None, image: Path, every: Sequence[Group[Cluster]], only: Sequence[str], output: Path, check: bool
) -> tuple[Wanted, list[Group[Cluster]]]:
    """Everything that can be wrong before anything is started, with status 2."""
    if folder is None or folder == Path():  # `--bin ""` is what make says without KUBE_BIN
        raise click.UsageError(
            "KUBE_BIN (or --bin) has to name the folder of the programs; see tests/cluster/README.md"
        )
    try:
        groups = select(every, only)
        binaries = find(folder.absolute())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except MissingError as error:
        raise _refusal(f"missing:\n{error}") from error
    if not check and not image.is_file():
        raise _refusal(f"missing:\n{image}: kpx's image; `make image` builds it")
    if str(Path(os.environ.get("TMPDIR", "/tmp")).resolve()).startswith(HIDDEN):
        raise _refusal(f"TMPDIR is below one of {', '.join(HIDDEN)}, of which a node has its own")
    return Wanted(binaries, image.absolute(), output.absolute() / "logs"), groups


class _Refusal(click.ClickException):
    exit_code = 2


def _refusal(message: str) -> click.ClickException:
    return _Refusal(message)


if __name__ == "__main__":
    main()
