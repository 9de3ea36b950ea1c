"""Interpreters for backends: one virtual environment each, since their pins fight each other and the host's."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

from gswarm import config as settings
from gswarm.errors import GswarmError, RefusedError
from gswarm.model.types import Environment

PACKAGES: dict[str, tuple[str, ...]] = {
    "transformers": ("torch", "transformers[serving]>=5.0", "accelerate>=1.10"),
    "vllm": ("vllm>=0.33",),
}
CPU_TORCH = "torch==2.13.0"
"""A release that has a build for CPU only, many times smaller than the default one."""
MARK = "gswarm.json"


def directory() -> Path:
    """Where environments are made: GSWARM_BACKENDS_DIR, config, or below the state directory."""
    given = os.environ.get("GSWARM_BACKENDS_DIR") or settings.load().backends.directory
    return Path(given).expanduser() if given else settings.state_dir() / "backends"


def python_of(backend: str) -> Path | None:
    """The interpreter of a backend, configured or installed; None when there is none."""
    configured = getattr(settings.load().backends, f"{backend}_python", "")
    if configured:
        return Path(configured)
    path = directory() / backend / "bin" / "python"
    return path if path.exists() and (directory() / backend / MARK).exists() else None


def require(backend: str) -> Path:
    """The interpreter of a backend. Raises RefusedError that says how to get one."""
    python = python_of(backend)
    if python is None or not python.exists():
        raise RefusedError(
            f"backend {backend} is not installed on this node",
            why=f"{python} does not exist" if python else "",
            next=f"run gswarm client backend install {backend} there, or set backends.{backend}_python",
        )
    return python


def list_all() -> list[Environment]:
    """Every backend that has an interpreter of its own, installed or not."""
    found = []
    for backend in PACKAGES:
        python = python_of(backend)
        mark = directory() / backend / MARK
        packages = ""
        if mark.exists():
            packages = ", ".join(json.loads(mark.read_text())["packages"])
        state = "missing" if python is None else "ready" if python.exists() else "broken"
        found.append(Environment(backend, str(python or "-"), state, packages))
    return found


async def install(backend: str, *, cpu: bool) -> Environment:
    """Make a backend's environment; one that is whole is left as it is. Raises GswarmError with pip's last lines."""
    target = directory() / backend
    mark = target / MARK
    packages = tuple(CPU_TORCH if cpu and package == "torch" else package for package in PACKAGES[backend])
    if mark.exists() and json.loads(mark.read_text())["packages"] == list(packages):
        return next(e for e in list_all() if e.backend == backend)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (target / "bin" / "python").exists():
        await _run(sys.executable, "-m", "venv", str(target))
    await _run(str(target / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *packages)
    mark.write_text(json.dumps({"packages": list(packages)}))
    return next(e for e in list_all() if e.backend == backend)


async def _run(*argv: str) -> None:
    """Run a child to its end, its output to our standard error; it ends with us."""
    process = await asyncio.create_subprocess_exec(*argv, stdout=sys.stderr.fileno(), stdin=asyncio.subprocess.DEVNULL)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if code:
        raise GswarmError(f"{' '.join(argv[1:4])} ... failed", why=f"exit code {code}", next="see its output above")


def has_nvidia() -> bool:
    """Whether this machine has an NVIDIA driver."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
