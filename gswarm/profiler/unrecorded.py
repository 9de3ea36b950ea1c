"""Reads that a recording cannot answer, and why. Every other read of the catalogue answers from one."""

from __future__ import annotations

from collections.abc import Mapping

UNRECORDED: Mapping[str, str] = {
    "model.logs": "what services print stays on their nodes",
    "data.get": "it holds what is known of chunks, not what is in them",
    "queue.history": "tasks that have left the list are kept by the host",
    "token.list": "it holds no secrets of the host, and not their names",
    "profiler.pull": "it is a recording already",
}
"""Action id to the reason."""
