"""Only some columns of a node's ticks, for a session that records only some metrics."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from gswarm.profiler.columns import Layout
from gswarm.profiler.ticks import SLOTS
from gswarm.v1 import profiler_pb2


class Selected:
    """Cuts schemas and ticks of one node down to some metrics."""

    def __init__(self, schema: profiler_pb2.MetricSchema, metrics: Collection[str]) -> None:
        kept = [index for index, column in enumerate(schema.columns) if column.name in metrics]
        self._layout = Layout(schema)
        self._new = {old: new for new, old in enumerate(kept)}
        self._places: dict[str, tuple[str, list[int]]] = {}
        self.schema = profiler_pb2.MetricSchema()
        self.schema.CopyFrom(schema)
        del self.schema.columns[:]
        self.schema.columns.extend(schema.columns[index] for index in kept)
        self._cut_reasons(self.schema)
        for column in self.schema.columns:
            slot, dtype = SLOTS[column.type]
            self._places.setdefault(slot, (dtype, []))[1].append(self._layout.places[column.name][2])

    def cut(self, tick: profiler_pb2.SampleTick) -> profiler_pb2.SampleTick:
        """A tick with the kept columns only; as it is when it does not fit its schema."""
        if not self._layout.fits(tick):
            return tick
        found = profiler_pb2.SampleTick()
        found.CopyFrom(tick)
        for slot, width in self._layout.widths.items():
            dtype, places = self._places.get(slot, ("<u1", []))
            packed = b""
            if places:
                table = np.frombuffer(getattr(tick, slot), dtype).reshape(-1, width)
                packed = table[:, places].tobytes()
            setattr(found, slot, packed)
        self._cut_reasons(found)
        return found

    def _cut_reasons(self, message: profiler_pb2.SampleTick | profiler_pb2.MetricSchema) -> None:
        told = getattr(message, "absent", [])  # schemas carry them from newer agents
        kept = [absent for absent in told if absent.column in self._new or getattr(absent, "every_column", False)]
        for absent in kept:
            absent.column = self._new.get(absent.column, 0)
        copies = [profiler_pb2.Absent.FromString(absent.SerializeToString()) for absent in kept]
        del told[:]
        told.extend(copies)
