"""Hugging Face Transformers: the library's own OpenAI-compatible server, `transformers serve`."""

from __future__ import annotations

from gswarm.errors import InvalidError
from gswarm.model.backends.backend import Command, Serving, device_environment
from gswarm.model.backends.environments import require
from gswarm.v1 import cluster_pb2

OPTIONS = frozenset({"dtype", "attn_implementation", "quantization"})


class Transformers:
    """CPU and NVIDIA GPUs; one request at a time."""

    name = "transformers"
    max_in_flight = 1
    load_limit_s = 900.0

    def accepts(self, kind: cluster_pb2.DeviceKind.ValueType) -> bool:
        """Real devices."""
        return kind in (cluster_pb2.DEVICE_KIND_CPU, cluster_pb2.DEVICE_KIND_GPU, cluster_pb2.DEVICE_KIND_MIG)

    def check(self, serving: Serving) -> None:
        """An interpreter, and a model that Transformers can read."""
        require(self.name)
        if not (serving.directory / "config.json").exists():
            raise InvalidError(
                f"{serving.model} has no config.json",
                why="Transformers needs one",
                next="serve it with another --backend",
            )
        if unknown := set(serving.options) - OPTIONS:
            raise InvalidError(
                f"transformers takes no option {', '.join(sorted(unknown))}",
                next=f"it takes {', '.join(sorted(OPTIONS))}",
                field="options",
            )

    def command(self, serving: Serving) -> Command:
        """`transformers serve DIRECTORY --device D --port P`, offline."""
        python = require(self.name)
        device = (
            "cpu"
            if serving.device_kind == cluster_pb2.DEVICE_KIND_CPU
            else "auto" if len(serving.device_ids) > 1 else "cuda"
        )
        argv = [str(python.with_name("transformers")), "serve", self.served_name(serving), "--device", device]
        argv += ["--host", "127.0.0.1", "--port", str(serving.port), "--log-level", "info"]
        for key, value in sorted(serving.options.items()):
            argv += [f"--{key.replace('_', '-')}", value]
        env = device_environment(serving) | {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1",
        }
        return Command(tuple(argv), env, serving.directory.parent.parent)

    def served_name(self, serving: Serving) -> str:
        """The directory, as seen from where it was started: its answers name it, and no path of this machine."""
        return f"{serving.directory.parent.name}/{serving.directory.name}"

    def needed_bytes(self, size_bytes: int) -> int:
        """The weights, and a tenth for activations and cache."""
        return size_bytes + size_bytes // 10
