"""Samples of a recording in bulk, for whoever computes with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gswarm.profiler.columns import Rows


@dataclass(frozen=True, slots=True)
class Series:
    """Some metrics of every device, as numpy columns over rows that are sorted by device, then time.

    The rows of device i are `starts[i]:starts[i + 1]`:

        series = recording.series(["gpu_util_percent"])
        for device, rows in series.devices():
            times_us, busy = series.times_us[rows], series.column("gpu_util_percent")[rows]
    """

    metrics: tuple[str, ...]
    device_ids: tuple[str, ...]
    nodes: tuple[str, ...]
    """Of each device."""
    starts: NDArray[np.int64]
    """One more than there are devices."""
    times_us: NDArray[np.int64]
    """When each row was sampled: host time, microseconds since the epoch; each once, ascending within a device."""
    values: tuple[NDArray[np.float64], ...]
    """A column for each of `metrics`, in its own unit; NaN is NA. Counters and byte counts are exact up to 2^53."""

    def column(self, metric: str) -> NDArray[np.float64]:
        """All values of one of `metrics`."""
        return self.values[self.metrics.index(metric)]

    def devices(self) -> Iterator[tuple[str, slice]]:
        """Each device's id and its rows."""
        for index, device in enumerate(self.device_ids):
            yield device, slice(int(self.starts[index]), int(self.starts[index + 1]))


def series_of(rows: Rows, metrics: Sequence[str]) -> Series:
    """Rows as a series; a metric that no device has is NA throughout."""
    import numpy as np

    from gswarm.profiler.columns import as_floats

    return Series(
        tuple(metrics),
        rows.device_ids,
        rows.nodes,
        rows.starts,
        rows.times_us,
        tuple(
            as_floats(rows.columns[name]) if name in rows.columns else np.full(len(rows.times_us), np.nan)
            for name in metrics
        ),
    )
