"""The host's composition root: what it is made of, in which order it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import grpc
import grpc.aio

from gswarm import __version__, net
from gswarm.config import Config, HostConfig
from gswarm.errors import InvalidError, RefusedError
from gswarm.host.auth import Auth, Interceptor
from gswarm.host.nodes import Nodes
from gswarm.host.samples import SampleHub
from gswarm.host.store import Store
from gswarm.v1 import cluster_pb2

log = logging.getLogger("gswarm.host")
GRACE_S = 2.0
M_ARENA_MAX = -8
"""Of malloc.h."""


@dataclass(slots=True)
class HostContext:
    """What every part of the host is built from."""

    config: Config
    state_dir: Path
    store: Store
    hub: SampleHub
    nodes: Nodes
    auth: Auth
    token: net.Token
    """The local admin token; parts use it to call the host as itself."""
    file: net.HostFile
    started_at: datetime
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def status(self) -> cluster_pb2.StatusResponse:
        """The host itself, now; who asks is not in it."""
        state = self.store.state
        response = cluster_pb2.StatusResponse(
            version=__version__,
            revision=state.revision,
            nodes=state.count(cluster_pb2.Node),
            devices=state.count(cluster_pb2.Device),
            pid=self.file.pid,
            grpc_port=self.file.port,
            http_port=self.file.http_port,
            model_port=self.file.model_port,
            state_dir=str(self.state_dir),
            loopback=net.is_loopback(self.file.bind),
        )
        response.started_at.FromDatetime(self.started_at)
        response.time.FromDatetime(datetime.now(UTC))
        return response


class Part(Protocol):
    """What each room's `service.py` gives the host."""

    def register(self, server: grpc.aio.Server) -> None:
        """Add gRPC servicers."""

    async def run(self) -> None:
        """Work in the background until cancelled."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """Listening sockets, bound before anything else so that a port in use is one clear error."""

    grpc_port: int
    http: socket.socket
    model: socket.socket


def build_parts(host: HostContext, sockets: Sockets) -> list[Part]:
    """Every part, in start order."""
    from gswarm.alert.service import AlertService
    from gswarm.cluster.service import ClusterService
    from gswarm.data.service import DataService
    from gswarm.host.http import HttpServer
    from gswarm.model.gateway import Gateway
    from gswarm.model.service import ModelService
    from gswarm.profiler.service import ProfilerService
    from gswarm.queue.service import QueueService

    return [
        ClusterService(host),
        host.nodes,
        ModelService(host),
        DataService(host),
        ProfilerService(host),
        QueueService(host),
        AlertService(host),
        Gateway(host, sockets.model),
        HttpServer(host, sockets.http),
    ]


def check_bind(config: HostConfig) -> bool:
    """Whether TLS is on. Raises InvalidError for a bind that cannot be."""
    if net.is_loopback(config.bind):
        return False
    return not config.insecure


def listen(bind: str, port: int, flag: str) -> socket.socket:
    """A listening TCP socket. Raises RefusedError naming the flag when the port is taken."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((bind, port))
        sock.listen(512)
    except OSError as error:
        sock.close()
        if error.errno == 99 or isinstance(error, socket.gaierror):
            raise InvalidError(f"{bind} is no address of this machine", field="bind") from None
        raise RefusedError(
            f"port {port} on {bind} cannot be used",
            why=error.strerror or "",
            next=f"stop what listens there, or choose another with {flag}",
            field=flag.lstrip("-").replace("-", "_"),
        ) from None
    sock.setblocking(False)
    return sock


@contextlib.asynccontextmanager
async def host(config: Config, state_dir: Path) -> AsyncIterator[HostContext]:
    """A running host. Raises before anything is changed when a port, the bind or the state is unusable."""
    from gswarm.alert.service import check as check_alerts

    tls = check_bind(config.host)
    check_alerts(config)
    bind = config.host.bind
    with contextlib.ExitStack() as stack:
        # gRPC binds by itself: take the port to see that it is free (or to choose one), and hand it over.
        probe = listen(bind, config.host.port, "--port")
        grpc_port = probe.getsockname()[1]
        sockets = Sockets(
            grpc_port,
            stack.enter_context(listen(bind, config.host.http_port, "--http-port")),
            stack.enter_context(listen(bind, config.host.model_port, "--model-port")),
        )
        stack.callback(probe.close)
        async with Store(state_dir) as store:
            fingerprint, credentials = "", None
            if tls:
                certificate, key = net.make_certificate(state_dir, _own_addresses(bind))
                fingerprint = net.fingerprint(certificate.read_text())
                credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
            auth = Auth(store, state_dir, fingerprint)
            token = await auth.start()
            hub = SampleHub()
            file = net.HostFile(
                os.getpid(),
                _started(),
                bind,
                grpc_port,
                sockets.http.getsockname()[1],
                sockets.model.getsockname()[1],
                tls,
            )
            context = HostContext(
                config, state_dir, store, hub, Nodes(store, hub), auth, token, file, datetime.now(UTC)
            )
            server = grpc.aio.server(interceptors=(Interceptor(auth),), options=OPTIONS)
            parts = build_parts(context, sockets)
            for part in parts:
                part.register(server)
            await _add_health(server)
            probe.close()
            address = f"[{bind}]:{grpc_port}" if ":" in bind else f"{bind}:{grpc_port}"
            try:
                bound = (
                    server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
                )
            except RuntimeError as error:
                raise RefusedError(f"port {grpc_port} on {bind} cannot be used", why=str(error)) from None
            if bound != grpc_port:
                raise RefusedError(f"port {grpc_port} on {bind} cannot be used", next="choose another with --port")
            await server.start()
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(part.run(), name=type(part).__name__) for part in parts]
                    file.write(state_dir)
                    log.info("host ready on %s, http %d, models %d", address, file.http_port, file.model_port)
                    try:
                        yield context
                    finally:
                        # Nothing may be asked of parts that are going; let running calls end first.
                        await server.stop(GRACE_S)
                        for task in tasks:
                            task.cancel()
            finally:
                (state_dir / "host.json").unlink(missing_ok=True)


OPTIONS: tuple[tuple[str, str | int], ...] = (
    # Two hosts must never share a port.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", net.MAX_MESSAGE),
    ("grpc.max_send_message_length", net.MAX_MESSAGE),
    # Consoles and agents behind idle-dropping networks may ping; the default server takes that for abuse.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # By default gRPC pings a peer that sends, to size its window: to agents, who send little all the time, that is half
    # of what their streams cost (benchmarks/ingest.py). This fixed window gave 15 MB/s a stream at 50 ms there and back.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    # Records for sending without copying, which is off, what channelz, which is not served, would show, and headers of calls
    # before, of which an agent makes one: 2 KiB a connection.
    ("grpc.experimental.tcp_tx_zerocopy_max_simultaneous_sends", 0),
    ("grpc.enable_channelz", 0),
    ("grpc.http2.hpack_table_size.decoder", 0),
    ("grpc.http2.hpack_table_size.encoder", 0),
)


async def _add_health(server: grpc.aio.Server) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_health.v1._async import HealthServicer
    from grpc_reflection.v1alpha import reflection

    from gswarm.v1 import agent_pb2, cluster_pb2, data_pb2, models_pb2, profiler_pb2, queue_pb2

    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [
        service.full_name
        for module in (agent_pb2, cluster_pb2, data_pb2, models_pb2, profiler_pb2, queue_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ]
    for name in ("", *names):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)


def _started() -> float:
    import psutil

    return psutil.Process().create_time()


def _own_addresses(bind: str) -> list[str]:
    if bind not in ("0.0.0.0", "::"):
        return [bind]
    import psutil

    found = [a.address for addresses in psutil.net_if_addrs().values() for a in addresses]
    return [a for a in found if a.count(".") == 3] or ["127.0.0.1"]


def collect_seldom() -> None:
    """Look for cycles of garbage less often: the host's state is hundreds of thousands of objects without any.

    At Python's thresholds a fifth of a busy host's time goes into walking them (benchmarks/submissions.py).
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def share_heap() -> None:
    """Let all threads allocate from one heap. By default glibc gives each of gRPC's one of its own, and what is freed there
    only that thread can use: of 1,000 nodes 3 MB. Before any thread is started; other C libraries have no such heaps.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


async def run(config: Config, state_dir: Path) -> None:
    """Run a host until SIGTERM, SIGINT or a Shutdown request."""
    collect_seldom()
    share_heap()
    async with host(config, state_dir) as context:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, context.stopping.set)
        await context.stopping.wait()
        log.info("host stopping")


def unwrap(error: BaseException) -> BaseException:
    """The one error inside nested exception groups, or the group itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
