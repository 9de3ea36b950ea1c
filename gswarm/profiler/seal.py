"""Child process: turns a recording's journal into Parquet, beside it. The host never imports pyarrow itself.

Run as `python -m gswarm.profiler.seal DIRECTORY`. Columns are named with their unit, sorted by device and time,
null where the value is NA.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

SEGMENT = "metrics-0001.parquet"


def seal(directory: Path) -> tuple[int, int]:
    """Write the segment, whole or not at all; how many node ticks and changes the journal holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gswarm.host.samples import values
    from gswarm.profiler.metrics import METRICS, Type
    from gswarm.profiler.recording import Recording

    with Recording.open(directory) as recording:
        counts = recording.counts()
        rows: list[tuple[str, int, str, dict[str, Any]]] = []
        for schema, tick in recording.ticks():
            for index, device in enumerate(schema.device_ids):
                rows.append((device, tick.time_unix_us, tick.node, dict(values(schema, tick, index))))
    rows.sort(key=lambda row: (row[0], row[1]))
    whole = pa.uint64()
    kinds = {
        Type.F32: pa.float32(), Type.I32: pa.int32(), Type.U64: whole, Type.COUNTER: whole, Type.MASK: whole
    }  # fmt: skip
    columns: dict[str, Any] = {
        "device_id": pa.array([row[0] for row in rows], pa.dictionary(pa.int32(), pa.string())),
        "time": pa.array([row[1] for row in rows], pa.timestamp("us", tz="UTC")),
        "node": pa.array([row[2] for row in rows], pa.dictionary(pa.int32(), pa.string())),
    }
    for metric in METRICS:
        columns[metric.name] = pa.array([row[3].get(metric.name) for row in rows], kinds[metric.type])
    temporary = directory / f".{SEGMENT}.part"
    pq.write_table(
        pa.table(columns),
        temporary,
        compression="zstd",
        use_dictionary=["device_id", "node"],
        column_encoding={"time": "DELTA_BINARY_PACKED"}
        | {m.name: "DELTA_BINARY_PACKED" for m in METRICS if m.type is Type.I32}
        | {m.name: "BYTE_STREAM_SPLIT" for m in METRICS if m.type is Type.F32},
    )
    temporary.chmod(0o600)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(directory / SEGMENT)
    return counts


if __name__ == "__main__":
    sys.stdout.write("{} {}\n".format(*seal(Path(sys.argv[1]))))
