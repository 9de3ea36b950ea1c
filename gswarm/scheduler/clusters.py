"""The `cluster` of a config file: what is known of GPUs and host memory beyond how many GPUs there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from gswarm.scheduler.problem import Gpu, Placement, ProblemError

T = TypeVar("T")
AT = ("cluster",)
SLOWEST = 1e-3
"""Speed of a GPU."""


class Source(Protocol):
    """A file that is read; `formats.Document`."""

    content: Any

    def take(self, holder: Any, keys: tuple[str | int, ...], kind: type[T], default: Any = ...) -> Any:
        """A value of it, checked."""

    def error(self, keys: tuple[str | int, ...], message: str) -> ProblemError:
        """An error at a place."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """As a config file describes it."""

    gpus: tuple[Gpu, ...]
    shared: bool = False
    host_memory_gb: float = 0.0
    placements: tuple[Placement, ...] = ()
    warnings: tuple[str, ...] = ()

    def optional(self) -> dict[str, Any]:
        """Fields of a `Problem`."""
        return {"shared": self.shared, "host_memory_gb": self.host_memory_gb, "placements": self.placements}


def read(config: Source, count: int, models: Mapping[str, int]) -> Cluster:
    """The cluster of `count` GPUs. Raises FormatError; what is beyond these GPUs is ignored with a warning."""
    body = config.take(config.content, AT, dict, None)
    if body is None:
        return Cluster((Gpu(),) * count)
    memory = config.take(body, (*AT, "gpu_memory_gb"), float, None)
    listed = config.take(body, (*AT, "gpus"), list, ())
    gpus = [_gpu(config, one, (*AT, "gpus", number), memory) for number, one in enumerate(listed[:count])]
    warnings: list[str] = []
    return Cluster(
        (*gpus, *(Gpu(memory),) * (count - len(gpus))),
        config.take(body, (*AT, "shared"), bool, False),
        config.take(body, (*AT, "host_memory_gb"), float, 0.0),
        tuple(_placements(config, body, count, models, warnings)),
        tuple(warnings),
    )


def _gpu(config: Source, body: Any, at: tuple[str | int, ...], memory: float | None) -> Gpu:
    speed = config.take(body, (*at, "speed"), float, 1.0)
    if speed < SLOWEST:
        raise config.error((*at, "speed"), f"{speed:g} is below {SLOWEST:g}")
    return Gpu(
        config.take(body, (*at, "memory_gb"), float, memory),
        speed,
        config.take(body, (*at, "free_at_seconds"), float, 0.0),
    )


def _placements(
    config: Source, body: Any, count: int, models: Mapping[str, int], warnings: list[str]
) -> Iterator[Placement]:
    for number, one in enumerate(config.take(body, (*AT, "placements"), list, ())):
        at = (*AT, "placements", number)
        name = config.take(one, (*at, "model"), str)
        if name not in models:
            raise config.error((*at, "model"), f"there is no model {name!r}; known: {', '.join(models)}")
        gpus = config.take(one, (*at, "gpus"), list)
        if not all(isinstance(g, int) and not isinstance(g, bool) and g >= 0 for g in gpus):
            raise config.error((*at, "gpus"), f"{gpus!r:.60} is no list of GPU numbers")
        if any(g >= count for g in gpus):
            warnings.append(f"placement {number} of {name} is ignored: GPU {max(gpus)} is none of {count}")
            continue
        yield Placement(models[name], tuple(sorted(gpus)))


def content(
    gpus: tuple[Gpu, ...], shared: bool, host_memory_gb: float, placements: list[dict[str, Any]]
) -> dict[str, Any]:
    """What `read` reads; empty for a cluster of which nothing is known."""
    told: dict[str, Any] = {}
    if set(gpus) == {gpu := Gpu(gpus[0].memory_gb)}:
        if gpu.memory_gb is not None:
            told["gpu_memory_gb"] = gpu.memory_gb
    else:
        told["gpus"] = [{"memory_gb": g.memory_gb, "speed": g.speed, "free_at_seconds": g.free_at} for g in gpus]
    if shared:
        told["shared"] = True
    if host_memory_gb:
        told["host_memory_gb"] = host_memory_gb
    if placements:
        told["placements"] = placements
    return told
