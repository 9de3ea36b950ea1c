"""gswarm: a swarm of GPU machines from one terminal. `connect` is the Python API's front door."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["__version__", "connect"]

if TYPE_CHECKING:
    from gswarm.swarm import connect
else:

    def __getattr__(name: str) -> object:
        # Lazy: `import gswarm` must stay free of grpc, the CLI starts through it.
        if name == "connect":
            from gswarm.swarm import connect

            return connect
        raise AttributeError(f"module 'gswarm' has no attribute {name!r}")
