"""The simulated backend: a real process with modelled load time, memory and speed, for devices marked SIM only."""

from __future__ import annotations

import sys

from gswarm.errors import InvalidError
from gswarm.model.backends.backend import Command, Serving
from gswarm.profiler.simulated import STATE_DIRECTORY
from gswarm.v1 import cluster_pb2

OPTIONS = frozenset({"tokens_per_s", "load_s"})


class Simulated:
    """Answers are marked SIM; real devices are refused."""

    name = "simulated"
    max_in_flight = 8
    load_limit_s = 600.0

    def accepts(self, kind: cluster_pb2.DeviceKind.ValueType) -> bool:
        """Simulated devices only."""
        return kind == cluster_pb2.DEVICE_KIND_SIMULATED

    def check(self, serving: Serving) -> None:
        """Known options that are numbers."""
        for key, value in serving.options.items():
            if key not in OPTIONS:
                raise InvalidError(
                    f"simulated takes no option {key}", next=f"it takes {', '.join(sorted(OPTIONS))}", field="options"
                )
            try:
                float(value)
            except ValueError:
                raise InvalidError(f"{key}={value} is no number", field="options") from None

    def command(self, serving: Serving) -> Command:
        """Our own small server, in our own interpreter."""
        state = serving.state_dir / STATE_DIRECTORY / f"{serving.service}.json"
        argv = [sys.executable, "-m", "gswarm.model.backends.simulated_server", "--model", serving.model]
        argv += ["--port", str(serving.port), "--size-bytes", str(serving.size_bytes), "--state", str(state)]
        argv += ["--devices", ",".join(serving.device_ids)]
        for key, value in sorted(serving.options.items()):
            argv += [f"--{key.replace('_', '-')}", value]
        return Command(tuple(argv), {"PYTHONUNBUFFERED": "1"})

    def served_name(self, serving: Serving) -> str:
        """The model's own name."""
        return serving.model

    def needed_bytes(self, size_bytes: int) -> int:
        """The weights, and a quarter for the cache."""
        return size_bytes + size_bytes // 4
