"""Which slow groups of metrics each node samples: an operation on the host's nodes, and desired state of their agents."""

from __future__ import annotations

from collections.abc import Callable

from gswarm.errors import InvalidError, NotFoundError
from gswarm.host.selection import enum_word
from gswarm.host.transaction import Transaction
from gswarm.names import near
from gswarm.v1.cluster_pb2 import Node
from gswarm.v1.profiler_pb2 import SamplingGroup, SetSamplingRequest, SetSamplingResponse


def switch(request: SetSamplingRequest) -> Callable[[Transaction], SetSamplingResponse]:
    """Turn groups on and off on the named nodes, or on all there are. Raises InvalidError, NotFoundError; refuses whole."""
    on, off = set(request.on), set(request.off)
    if not on | off:
        raise InvalidError("nothing is to be switched", next="give --pcie on or --nvlink off, for example")
    if both := on & off:
        raise InvalidError(f"{enum_word(SamplingGroup.DESCRIPTOR, min(both))} cannot be both on and off")

    def operation(tx: Transaction) -> SetSamplingResponse:
        names = [node.name for node in tx.list(Node)]
        for name in request.nodes:
            if name not in names:
                raise NotFoundError(f"there is no node {name}", next=near(name, names), field="nodes")
        changed = 0
        for name in request.nodes or names:
            node = tx.edit(Node, name)
            if node is None or (wanted := sorted((set(node.sampling) | on) - off)) == list(node.sampling):
                continue
            node.sampling[:] = wanted
            tx.put(node)
            words = [enum_word(SamplingGroup.DESCRIPTOR, number) for number in wanted]
            tx.event("profiler.sampling", f"{name} samples {' and '.join(words) or 'no slow metrics'}", subject=node)
            changed += 1
        return SetSamplingResponse(revision=tx.revision, changed=changed)

    return operation
