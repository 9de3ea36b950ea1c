"""Only some columns of a node's ticks, for a session that records only some metrics."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from gswarm.profiler.columns import SLOTS, Layout
from gswarm.v1 import profiler_pb2


class Selected:
    """Cuts ticks of one schema down to some metrics."""

    def __init__(self, schema: profiler_pb2.MetricSchema, metrics: Collection[str]) -> None:
        kept = [index for index, column in enumerate(schema.columns) if column.name in metrics]
        self.schema = profiler_pb2.MetricSchema(
            node=schema.node,
            id=schema.id,
            columns=[schema.columns[index] for index in kept],
            device_ids=schema.device_ids,
        )
        self._layout = Layout(schema)
        self._new = {old: new for new, old in enumerate(kept)}
        self._places: dict[str, tuple[str, list[int]]] = {}
        for column in self.schema.columns:
            slot, dtype = SLOTS[column.type]
            self._places.setdefault(slot, (dtype, []))[1].append(self._layout.places[column.name][2])

    def cut(self, tick: profiler_pb2.SampleTick) -> profiler_pb2.SampleTick:
        """A tick with the kept columns only; as it is when it does not fit its schema."""
        if not self._layout.fits(tick):
            return tick
        found = profiler_pb2.SampleTick(
            node=tick.node, seq=tick.seq, time_unix_us=tick.time_unix_us, schema_id=tick.schema_id, gap=tick.gap
        )
        for slot, (dtype, places) in self._places.items():
            table = np.frombuffer(getattr(tick, slot), dtype).reshape(-1, self._layout.widths[slot])
            setattr(found, slot, table[:, places].tobytes())
        for absent in tick.absent:
            if absent.column in self._new:
                found.absent.add(device=absent.device, column=self._new[absent.column], reason=absent.reason)
        return found
