"""`kpx run`: how it is called."""

from pathlib import Path

import click

from kpx.agent.detail import EVERY, Detail
from kpx.cli.options import backend_option, calls, config_option, layout_option, node_option


@click.command()
@config_option
@click.option(
    "--kubeconfig", type=click.Path(dir_okay=False), help="How to reach the API server [default: in-cluster]."
)
@click.option(
    "--manifests",
    type=click.Path(file_okay=False, path_type=Path),
    help="Follow the manifests in this directory instead of an API server.",
)
@node_option
@layout_option
@backend_option
@click.option(
    "--connection-metrics",
    "connections",
    type=click.Choice([one.value for one in Detail]),
    default=Detail.SERVICES.value,
    show_default=True,
    help="Count new connections per Service, per endpoint too, or not at all.",
)
@click.option(
    "--connection-metrics-every",
    "connections_every",
    type=click.FloatRange(min=0.1),
    default=EVERY,
    show_default=True,
    metavar="SECONDS",
    help="Read these counters at most so often; more seldom if that would take more than 2 % of the time.",
)
@click.option(
    "--external-ip-ranges",
    "external_ranges",
    multiple=True,
    metavar="CIDR[,CIDR]",
    help="Refuse external IPs of Services outside these ranges; an empty text refuses all. May be repeated "
    "[default: none is refused].",
)
@click.option("--once", is_flag=True, help="Bring the kernel up to date once and end.")
@click.option("--init-only", is_flag=True, help="Set the host's kernel parameters and end.")
@click.option("--cleanup", is_flag=True, help="Remove every rule of ours and end.")
@calls("kpx.cli.run")
def command() -> None:
    """Keep this node's rules equal to the cluster's Services: what the DaemonSet starts.

    Rules stay when the agent stops, and are adopted when it starts again. SIGTERM ends it, SIGHUP rereads the
    configuration, SIGUSR1 writes what it knows to a file.

    \b
    Example:
      kpx run --config /var/lib/kube-proxy/config.conf
      kpx run --manifests shop/ --config config.yaml --once
    """
