"""The protocol of a backend: a child process in its own interpreter that speaks the OpenAI API on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gswarm.v1 import cluster_pb2


@dataclass(frozen=True, slots=True)
class Serving:
    """What is to be served: where its files are, on which devices (NVML UUIDs and their kind), and on which port."""

    service: str
    model: str
    directory: Path
    size_bytes: int
    device_ids: tuple[str, ...]
    device_kind: cluster_pb2.DeviceKind.ValueType
    port: int
    options: Mapping[str, str]
    state_dir: Path


@dataclass(frozen=True, slots=True)
class Command:
    """How to start it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    directory: Path | None = None
    """Where to start it; by default the agent's state directory."""


class Backend(Protocol):
    """One kind of backend."""

    name: str
    max_in_flight: int
    """Requests it takes at once without queueing inside."""
    load_limit_s: float
    """Longest time from start to ready before it counts as failed."""

    def accepts(self, kind: cluster_pb2.DeviceKind.ValueType) -> bool:
        """Whether it runs on devices of this kind."""

    def check(self, serving: Serving) -> None:
        """Raise GswarmError, with what to do, when it cannot be started for this."""

    def command(self, serving: Serving) -> Command:
        """What to run."""

    def served_name(self, serving: Serving) -> str:
        """What requests must name as their model."""

    def needed_bytes(self, size_bytes: int) -> int:
        """Device memory that a model of this size takes at least, bytes."""


def device_environment(serving: Serving) -> dict[str, str]:
    """Shows the process its own GPUs only; none on a CPU."""
    if serving.device_kind in (cluster_pb2.DEVICE_KIND_GPU, cluster_pb2.DEVICE_KIND_MIG):
        return {"CUDA_VISIBLE_DEVICES": ",".join(serving.device_ids)}
    return {"CUDA_VISIBLE_DEVICES": ""}
