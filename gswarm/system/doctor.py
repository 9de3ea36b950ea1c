"""Checks of this machine, each small and with an id; every finding says what to do."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from gswarm import config as settings
from gswarm import net
from gswarm.errors import GswarmError, UnreachableError
from gswarm.system.daemon import is_free, running_host
from gswarm.system.types import Finding, Verdict
from gswarm.units import size

OK, WARNING, FAILED = Verdict.OK, Verdict.WARNING, Verdict.FAILED


def checks() -> tuple[Callable[[], Iterator[Finding]], ...]:
    """Every check."""
    return (config, state_directory, host, ports, token, nvml, shared_memory, backends, terminal)


def examine() -> list[Finding]:
    """Run them all; a check that itself breaks is a finding."""
    found: list[Finding] = []
    for check in checks():
        try:
            found += check()
        except GswarmError as error:
            said = f"{error.what}: {error.why}" if error.why else error.what
            found.append(Finding(check.__name__, FAILED, said, error.next or "correct what the message names"))
        except OSError as error:
            found.append(Finding(check.__name__, FAILED, str(error), "see the message"))
    return found


def config() -> Iterator[Finding]:
    """The settings can be read."""
    loaded = settings.load()
    yield Finding("config", OK, f"{len(loaded.origins)} settings differ from their defaults")


def state_directory() -> Iterator[Finding]:
    """It can be written, is local, and has room."""
    from gswarm.host.database import refuse_network

    path = settings.state_dir()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    refuse_network(path)
    probe = path / ".doctor"
    probe.write_text("x")
    probe.unlink()
    free = shutil.disk_usage(path).free
    if free < 1 << 30:
        yield Finding(
            "state", WARNING, f"{path} has {size(free)} free", "free some space: models and recordings go there"
        )
    else:
        yield Finding("state", OK, f"{path} is writable, {size(free)} free")
    if path.stat().st_mode & 0o077:
        yield Finding("state.mode", WARNING, f"others may read {path}", f"chmod 700 {path}")


def host() -> Iterator[Finding]:
    """Whether a host runs here, and answers."""
    found = running_host()
    if found is None:
        yield Finding(
            "host", WARNING, "no host runs on this machine", "gswarm up starts one; or name one with GSWARM_HOST"
        )
        return
    for name, port in (("gRPC", found.port), ("HTTP", found.http_port), ("models", found.model_port)):
        address = "127.0.0.1" if found.bind in ("0.0.0.0", "::") else found.bind
        try:
            socket.create_connection((address, port), 2).close()
        except OSError as error:
            yield Finding(
                "host", FAILED, f"{name} port {port} does not answer: {error.strerror}", "gswarm down, then gswarm up"
            )
            return
    yield Finding(
        "host", OK, f"a host runs, pid {found.pid}, ports {found.port}, {found.http_port}, {found.model_port}"
    )


def ports() -> Iterator[Finding]:
    """The ports a host would take."""
    if running_host() is not None:
        return
    wanted = settings.load().host
    for name, port in (("port", wanted.port), ("http_port", wanted.http_port), ("model_port", wanted.model_port)):
        if port and not is_free(wanted.bind, port):
            yield Finding(
                f"ports.{name}",
                WARNING,
                f"port {port} is taken",
                f"set host.{name}, or stop what listens there; gswarm up takes another",
            )
        else:
            yield Finding(f"ports.{name}", OK, f"port {port} is free")


def token() -> Iterator[Finding]:
    """There is a token for the host that commands would talk to, and nobody else can read what this machine keeps."""
    for path in (settings.state_dir() / "host.token", settings.state_dir() / "host.key"):
        if path.exists() and path.stat().st_mode & 0o077:
            yield Finding("token.mode", FAILED, f"others may read {path}", f"chmod 600 {path}")
    try:
        endpoint = net.discover()
    except UnreachableError:
        return  # no host: that is the finding of another check
    if endpoint.token is None:
        yield Finding(
            "token",
            FAILED,
            f"no token for {endpoint.address}",
            "set GSWARM_TOKEN; an admin makes one with gswarm token create",
        )
        return
    yield Finding("token", OK, f"a token of role {endpoint.token.role} for {endpoint.address}")


def nvml() -> Iterator[Finding]:
    """GPUs through NVML."""
    from gswarm.profiler import nvml as gpus

    found = gpus.discover("this")
    if not found:
        yield Finding(
            "nvml",
            WARNING,
            "no NVIDIA GPU answers",
            "fine for CPU and --simulate; else check nvidia-smi and the driver",
        )
        return
    lost = [gpu.id for gpu in found if gpu.lost]
    yield Finding(
        "nvml",
        FAILED if lost else OK,
        f"{len(found)} GPUs{f', lost: {lost}' if lost else ''}",
        "reset or reboot" if lost else "",
    )


def shared_memory() -> Iterator[Finding]:
    """Room for the data pool."""
    path = Path(os.environ.get("GSWARM_SHM_DIR", "/dev/shm"))
    # An agent makes what is missing of it.
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        yield Finding("shm", FAILED, f"{there} cannot be written to", "mount a tmpfs there, or set GSWARM_SHM_DIR")
        return
    free = shutil.disk_usage(there).free
    verdict = OK if free > 256 << 20 else WARNING
    yield Finding(
        "shm", verdict, f"{path} has {size(free)} free", "" if verdict is OK else "enlarge it, or delete chunks"
    )


def backends() -> Iterator[Finding]:
    """Interpreters that can serve models."""
    from gswarm.model.backends.environments import list_all

    for environment in list_all():
        if environment.state == "ready":
            yield Finding(f"backend.{environment.backend}", OK, f"{environment.python}")
        elif environment.state == "broken":
            yield Finding(
                f"backend.{environment.backend}",
                FAILED,
                f"{environment.python} does not exist",
                f"gswarm client backend install {environment.backend}",
            )
        else:
            yield Finding(
                f"backend.{environment.backend}",
                WARNING,
                "not installed",
                f"gswarm client backend install {environment.backend}",
            )


def terminal() -> Iterator[Finding]:
    """What the console would find."""
    term = os.environ.get("TERM", "")
    if term in ("", "dumb"):
        yield Finding(
            "terminal", WARNING, f"TERM is {term or 'not set'}", "the console needs a terminal; commands do not"
        )
    else:
        yield Finding("terminal", OK, f"TERM is {term}")
