"""`kpx run`."""

import asyncio
import errno
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpx import early, host, logs
from kpx.agent import files
from kpx.agent.connections import Detail, Wanted
from kpx.agent.metrics import Metrics
from kpx.agent.run import Agent, Setup
from kpx.api import KubeProxyConfiguration
from kpx.cli.inputs import node_name, read_config
from kpx.compiler.compile import Layout
from kpx.errors import KpxError
from kpx.family import Family
from kpx.model.external import ExternalRanges, parse_ranges
from kpx.netfilter.backend import detect
from kpx.netfilter.tools import Backend, Tools
from kpx.reconcile.apply import remove
from kpx.reconcile.fitness import check_layout

log = logs.get_logger()

_THREADS = "kpx-blocking"
_WANT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_GRACE_SECONDS = 1.0
_COMPLAINTS_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Options:
    config_file: str | None
    kubeconfig: str | None
    manifests: Path | None
    node: str | None
    layout: Layout
    backend: str
    connections: Wanted
    external_ranges: ExternalRanges | None


def command(
    config_file: str | None,
    kubeconfig: str | None,
    manifests: Path | None,
    node: str | None,
    layout: str,
    backend: str,
    connections: str,
    connections_every: float,
    external_ranges: tuple[str, ...],
    once: bool,
    init_only: bool,
    cleanup: bool,
) -> None:
    """Keep this node's rules equal to the cluster's Services: what the DaemonSet starts."""
    if kubeconfig and manifests:
        raise KpxError("--kubeconfig and --manifests: only one can be followed")
    options = _Options(
        config_file,
        kubeconfig,
        manifests,
        node,
        Layout(layout),
        backend,
        Wanted(Detail(connections), connections_every),
        _ranges(external_ranges),
    )
    if cleanup:
        _clean_up(_backend(backend))
        return
    config = _configure(config_file)
    if init_only:
        host.setup(config)
    else:
        asyncio.run(_once(options, config) if once else _serve(options, config))


def _ranges(texts: tuple[str, ...]) -> ExternalRanges | None:
    try:
        return parse_ranges(texts) if texts else None
    except KpxError as error:
        raise KpxError(f"--external-ip-ranges: {error}") from None


def _clean_up(backend: Backend) -> None:
    """Clean both families, the second one also if the first can't be."""
    failed = []
    for family in Family:
        try:
            remove(Tools(backend, family))
        except KpxError as error:
            failed.append(family)
            log.error("not cleaned up", family=family, error=str(error))
    if failed:
        raise KpxError(f"not cleaned up: {', '.join(failed)}")


def _configure(config_file: str | None) -> KubeProxyConfiguration:
    """Read the configuration, and make logs as it asks for."""
    config = read_config(config_file)
    level = logging.DEBUG if config.logging.verbosity >= 4 else logging.INFO
    logs.configure(json=config.logging.format == "json", level=level)
    logs.load()
    return config


@asynccontextmanager
async def _agent(options: _Options, config: KubeProxyConfiguration, metrics: Metrics) -> AsyncIterator[Agent]:
    """An agent and what it is connected to."""
    setup = Setup(
        config,
        node_name(options.node, config),
        options.layout,
        _backend(options.backend),
        options.connections,
        options.external_ranges,
    )
    for warning in host.shortcomings(setup.backend):
        log.warning(warning)
    if options.manifests:
        from kpx.sources.directory import DirectorySource

        yield await _checked(Agent(setup, DirectorySource(str(options.manifests)), metrics))
        return
    # A client of the API server takes a third of all imports; who follows a directory has no use for one.
    from kpx.sources.cluster import ClusterSource
    from kpx.sources.connection import connect

    connection = await connect(options.kubeconfig, config)
    try:
        source = ClusterSource(connection, setup.node_name, metrics.watch_restarted)
        yield await _checked(Agent(setup, source, metrics))
    finally:
        await connection.close()


async def _checked(agent: Agent) -> Agent:
    if not agent.proxies:
        raise KpxError("no iptables found: install the package iptables (Debian, Ubuntu) or set PATH")
    layout = agent.setup.layout
    await asyncio.gather(*(asyncio.to_thread(check_layout, layout, proxy.tools) for proxy in agent.proxies))
    return agent


async def _once(options: _Options, config: KubeProxyConfiguration) -> None:
    async with _agent(options, config, Metrics()) as agent:
        await agent.once()


async def _serve(options: _Options, config: KubeProxyConfiguration) -> None:
    """Run until told to end by SIGTERM or SIGINT, with another agent after each SIGHUP."""
    files.raise_limit()
    loop, metrics = asyncio.get_running_loop(), Metrics()
    loop.set_exception_handler(_Complaints())
    threads = ThreadPoolExecutor(thread_name_prefix=_THREADS)
    loop.set_default_executor(threads)
    words: asyncio.Queue[bool] = asyncio.Queue()
    for number, again in ((signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGHUP, True)):
        loop.add_signal_handler(number, words.put_nowait, again)
    if early.arrived(signal.SIGHUP):  # perhaps after the configuration was read
        config = _reread(options.config_file, config)
    while await _run_until_told(_run(options, config, metrics), words):
        config = _reread(options.config_file, config)
    log.info("stopped; the rules stay")
    threads.shutdown(wait=False, cancel_futures=True)
    _leave_threads_behind()


class _Complaints:
    """What goes wrong where nobody waits for it; a want of files is told once in a while, as it comes in thousands."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _WANT:
            loop.default_exception_handler(context)
        elif loop.time() >= self._next:
            self._next = loop.time() + _COMPLAINTS_SECONDS
            log.error("connections can't be accepted", error=error.strerror)


async def _run(options: _Options, config: KubeProxyConfiguration, metrics: Metrics) -> None:
    """Run one agent, until cancelled."""
    async with _agent(options, config, metrics) as agent:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, agent.dump)
        if early.arrived(signal.SIGUSR1):
            agent.dump()
        log.info("started", node=agent.setup.node_name, backend=agent.setup.backend, layout=agent.setup.layout)
        try:
            await agent.run()
        except ExceptionGroup as group:
            raise _reason(group) from None


def _reason(error: Exception) -> Exception:
    """What is to be told of a group of errors: if there are no bugs among them, the first."""
    while isinstance(error, ExceptionGroup) and error.split(KpxError)[1] is None:
        error = error.exceptions[0]
    return error


async def _run_until_told(run: Coroutine[Any, Any, None], words: asyncio.Queue[bool]) -> bool:
    """Run until there is a word whether to start over; returns it."""
    running, word = asyncio.create_task(run), asyncio.create_task(words.get())
    await asyncio.wait({running, word}, return_when=asyncio.FIRST_COMPLETED)
    if not word.done():
        word.cancel()
        await running  # it ends by itself only with an error
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return word.result()


def _leave_threads_behind() -> None:
    """End the process if threads stay busy: one that waits for a tool that hangs can't be stopped otherwise."""
    end = time.monotonic() + _GRACE_SECONDS
    busy = [thread for thread in threading.enumerate() if thread.name.startswith(_THREADS)]
    for thread in busy:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in busy):
        os._exit(0)


def _reread(config_file: str | None, config: KubeProxyConfiguration) -> KubeProxyConfiguration:
    """The configuration as it is now, or, if it can't be read, as it was."""
    try:
        return _configure(config_file)
    except KpxError as error:
        log.error("configuration not reread", error=str(error))
        return config


def _backend(backend: str) -> Backend:
    return detect() if backend == "auto" else Backend(backend)
