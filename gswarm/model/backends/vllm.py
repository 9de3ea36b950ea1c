"""vLLM: continuous batching on NVIDIA GPUs, and on CPU where its CPU build is installed."""

from __future__ import annotations

from gswarm.errors import InvalidError
from gswarm.model.backends.backend import Command, Serving, device_environment
from gswarm.model.backends.environments import require
from gswarm.v1 import cluster_pb2

OPTIONS = frozenset(
    {"max_model_len", "gpu_memory_utilization", "dtype", "quantization", "max_num_seqs", "enforce_eager"}
)


class Vllm:
    """Thirty-two requests at once, batched inside."""

    name = "vllm"
    max_in_flight = 32
    load_limit_s = 1800.0

    def accepts(self, kind: cluster_pb2.DeviceKind.ValueType) -> bool:
        """Real devices."""
        return kind in (cluster_pb2.DEVICE_KIND_CPU, cluster_pb2.DEVICE_KIND_GPU, cluster_pb2.DEVICE_KIND_MIG)

    def check(self, serving: Serving) -> None:
        """An interpreter and known options."""
        require(self.name)
        if unknown := set(serving.options) - OPTIONS:
            raise InvalidError(
                f"vllm takes no option {', '.join(sorted(unknown))}",
                next=f"it takes {', '.join(sorted(OPTIONS))}",
                field="options",
            )

    def command(self, serving: Serving) -> Command:
        """Its OpenAI server, one tensor-parallel rank a device."""
        argv = [str(require(self.name)), "-m", "vllm.entrypoints.openai.api_server", "--model", str(serving.directory)]
        argv += ["--served-model-name", serving.model, "--host", "127.0.0.1", "--port", str(serving.port)]
        env = device_environment(serving) | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
        if serving.device_kind == cluster_pb2.DEVICE_KIND_CPU:
            argv.append("--enforce-eager")
            env["VLLM_CPU_KVCACHE_SPACE"] = "1"
        elif len(serving.device_ids) > 1:
            argv += ["--tensor-parallel-size", str(len(serving.device_ids))]
        for key, value in sorted(serving.options.items()):
            flag = f"--{key.replace('_', '-')}"
            argv += [flag] if value in ("", "true") else [flag, value]
        return Command(tuple(argv), env)

    def served_name(self, serving: Serving) -> str:
        """The model's own name."""
        return serving.model

    def needed_bytes(self, size_bytes: int) -> int:
        """The weights, and a fifth for cache and graphs."""
        return size_bytes + size_bytes // 5
