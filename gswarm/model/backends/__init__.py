"""What can serve a model."""

from __future__ import annotations

from gswarm.errors import InvalidError
from gswarm.model.backends.backend import Backend
from gswarm.names import near

NAMES = ("transformers", "vllm", "simulated")


def backend(name: str) -> Backend:
    """The backend of that name. Raises InvalidError with near names."""
    match name:
        case "transformers":
            from gswarm.model.backends.transformers import Transformers

            return Transformers()
        case "vllm":
            from gswarm.model.backends.vllm import Vllm

            return Vllm()
        case "simulated":
            from gswarm.model.backends.simulated import Simulated

            return Simulated()
    raise InvalidError(f"there is no backend {name!r}", next=near(name, NAMES), field="backend")
