"""Samples and events as Parquet, written so that any reader understands them; pyarrow is imported only when called."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gswarm.errors import InvalidError
from gswarm.profiler.columns import Rows, absent, dtype_of, na_of
from gswarm.v1 import common_pb2, profiler_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEYS = ("device_id", "node", "time")
_FEW_VALUES = 256
"""A column with no more different values than this in its first rows is stored as indices into them."""
_WIRE_TYPES = dict(profiler_pb2.ColumnType.items())
EVENT_FIELDS = ("id", "time", "revision", "type", "severity", "actor", "cause", "subject_kind", "subject", "message")


def _table(rows: Rows, columns: Mapping[str, profiler_pb2.MetricColumn]) -> Any:
    import pyarrow as pa

    counts = np.diff(rows.starts)
    device = np.repeat(np.arange(len(rows.device_ids), dtype=np.int32), counts)
    arrays = [
        pa.DictionaryArray.from_arrays(device, pa.array(rows.device_ids, pa.string())),
        pa.DictionaryArray.from_arrays(device, pa.array(rows.nodes, pa.string())),
        pa.array(rows.times_us // 1000, pa.timestamp("ms", tz="UTC")),
    ]
    fields = [pa.field(name, array.type, nullable=False) for name, array in zip(KEYS, arrays, strict=True)]
    for name, column in columns.items():
        dtype = dtype_of(column)
        values = rows.columns.get(name)
        values = np.full(len(device), na_of(dtype), dtype) if values is None else values.astype(dtype, copy=False)
        arrays.append(pa.array(values, mask=absent(values)))
        # Scaled integers are stored as the numbers they stand for.
        kind = profiler_pb2.COLUMN_TYPE_GAUGE_F32 if column.scale else column.type
        told = {"unit": column.unit, "type": profiler_pb2.ColumnType.Name(kind)}
        fields.append(pa.field(name, arrays[-1].type, metadata=told))
    return pa.table(arrays, pa.schema(fields))


def _encodings(rows: Rows, columns: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Which columns are stored as indices, and how the others are packed."""
    indexed, packed = ["device_id", "node"], {"time": "DELTA_BINARY_PACKED"}
    for name in columns:
        values = rows.columns.get(name)
        if values is None or len(np.unique(values)) <= _FEW_VALUES:
            indexed.append(name)
        else:
            packed[name] = "BYTE_STREAM_SPLIT" if values.dtype.kind == "f" else "DELTA_BINARY_PACKED"
    return indexed, packed


def write_metrics(path: Path, slices: Iterable[Rows], columns: Mapping[str, profiler_pb2.MetricColumn]) -> int:
    """Write slices of time as row groups, each by device and time; how many rows. Raises OSError, ValueError."""
    import pyarrow.parquet as pq

    writer, count = None, 0
    try:
        for rows in slices:
            table = _table(rows, columns)
            if writer is None:
                indexed, packed = _encodings(rows, columns)
                writer = pq.ParquetWriter(
                    path,
                    table.schema,
                    compression="zstd",
                    compression_level=9,
                    use_dictionary=indexed,
                    column_encoding=packed,
                    write_statistics=["time", *columns],
                    write_page_checksum=True,
                    data_page_size=1 << 20,
                )
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            count += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        return 0
    synced(path)
    check(path, count)
    return count


def check(path: Path, rows: int) -> None:
    """Read a file back whole, checksums included. Raises ValueError when it does not hold so many rows."""
    with Table(path) as written:
        found = sum(written.read(group, None).num_rows for group in range(len(written.spans)))
    if found != rows:
        raise ValueError(f"{path.name} holds {found} rows instead of {rows}")


def write_events(path: Path, events: Sequence[tuple[int, common_pb2.Event]]) -> None:
    """Write (revision, entry of the event log), oldest first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gswarm.host.selection import enum_word

    rows = [
        {
            "id": int(event.id),
            "time": event.time.ToMicroseconds(),
            "revision": revision,
            "type": event.type,
            "severity": enum_word(common_pb2.Severity.DESCRIPTOR, event.severity),
            "actor": event.actor,
            "cause": event.cause,
            "subject_kind": enum_word(common_pb2.Kind.DESCRIPTOR, event.subject_kind),
            "subject": event.subject,
            "message": event.message,
        }
        for revision, event in events
    ]
    kinds = {"id": pa.int64(), "time": pa.timestamp("us", tz="UTC"), "revision": pa.int64()}
    schema = pa.schema([pa.field(name, kinds.get(name, pa.string())) for name in EVENT_FIELDS])
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd", write_page_checksum=True)
    synced(path)


def footer_crc(path: Path) -> int:
    """The crc-32 of a file's footer (parquet.apache.org/docs/file-format), which pages' own checksums leave out.

    Raises OSError, and ValueError when there is none.
    """
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        size, magic = struct.unpack("<I4s", file.read(8))
        if magic != b"PAR1" or size + 12 > path.stat().st_size:
            raise ValueError("it has no footer")
        file.seek(-8 - size, os.SEEK_END)
        return zlib.crc32(file.read(size))


def _check_footer(path: Path, expected: int | None) -> None:
    if expected is not None and footer_crc(path) != expected:
        raise ValueError("its footer is not the one that was written")


def read_events(path: Path, footer: int | None) -> list[common_pb2.Event]:
    """The event log of a segment; `footer` is its footer's checksum, if known. Raises InvalidError when it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        _check_footer(path, footer)
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        rows = table.set_column(1, "time", table["time"].cast(pa.int64())).to_pylist()
    except _damages() as error:
        raise InvalidError(f"{path.name} is damaged", why=_first_line(error)) from None
    found = []
    for row in rows:
        event = common_pb2.Event(
            **{name: row[name] for name in ("type", "actor", "cause", "subject", "message")},
            id=str(row["id"]),
            severity=common_pb2.Severity.Value(f"SEVERITY_{row['severity'].upper()}"),
            subject_kind=common_pb2.Kind.Value(f"KIND_{row['subject_kind'].upper()}"),
        )
        event.time.FromMicroseconds(row["time"])
        found.append(event)
    return found


class Table:
    """An open metrics file. Raises InvalidError when it is damaged, on opening or when that part is read."""

    def __init__(self, path: Path, footer: int | None = None) -> None:
        import pyarrow.parquet as pq

        self._path = path
        try:
            _check_footer(path, footer)
            self._file = pq.ParquetFile(
                path, read_dictionary=["device_id", "node"], page_checksum_verification=True, pre_buffer=False
            )
            self.spans = [self._span(group) for group in range(self._file.num_row_groups)]
            """First and last time of each row group, microseconds."""
            self.columns = {field.name: _column(field) for field in self._file.schema_arrow if field.name not in KEYS}
        except _damages() as error:
            raise InvalidError(f"{path.name} is damaged", why=_first_line(error)) from None

    def _span(self, group: int) -> tuple[int, int]:
        told = self._file.metadata.row_group(group)
        index = self._file.schema_arrow.get_field_index("time")
        stats = told.column(index).statistics
        if stats is None or not stats.has_min_max:
            raise ValueError("its times have no statistics")
        return stats.min_raw * 1000, stats.max_raw * 1000

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, group: int, metrics: Sequence[str] | None) -> Any:
        """A row group as an Arrow table."""
        wanted = None if metrics is None else [*KEYS, *(name for name in metrics if name in self.columns)]
        try:
            return self._file.read_row_group(group, columns=wanted, use_threads=True)
        except _damages() as error:
            raise InvalidError(
                f"a part of {self._path.name} is damaged and was left out", why=_first_line(error)
            ) from None

    def rows(self, group: int, metrics: Sequence[str] | None) -> Rows:
        """A row group as numpy columns."""
        table = self.read(group, metrics)
        device = table["device_id"].combine_chunks()
        node = table["node"].combine_chunks()
        index = device.indices.to_numpy()
        edges = np.flatnonzero(index[1:] != index[:-1]) + 1
        starts = np.concatenate(([0], edges, [len(index)])).astype(np.int64)
        firsts = starts[:-1] if len(index) else starts[:0]
        names, nodes = device.dictionary.to_pylist(), node.dictionary.to_pylist()
        node_index = node.indices.to_numpy()
        columns = {name: _numbers(table[name], self.columns[name]) for name in table.column_names if name not in KEYS}
        return Rows(
            tuple(names[index[at]] for at in firsts),
            tuple(nodes[node_index[at]] for at in firsts),
            starts if len(index) else np.zeros(1, np.int64),
            table["time"].to_numpy().astype("datetime64[ms]").astype(np.int64) * 1000,
            columns,
        )

    def times(self, group: int) -> NDArray[np.int64]:
        """When the rows of a row group were sampled."""
        table = self.read(group, ())
        found: NDArray[np.int64] = table["time"].to_numpy().astype("datetime64[ms]").astype(np.int64) * 1000
        return found


def _numbers(column: Any, told: profiler_pb2.MetricColumn) -> NDArray[Any]:
    import pyarrow as pa

    kinds = {pa.int32(): np.int32, pa.uint64(): np.uint64, pa.float64(): np.float64}
    dtype = np.dtype(kinds.get(column.type, np.float32))
    array = column.combine_chunks()
    if array.null_count:
        array = array.fill_null(pa.scalar(na_of(dtype), array.type))
    found: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return found


def _column(field: Any) -> profiler_pb2.MetricColumn:
    told = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return profiler_pb2.MetricColumn(
        name=field.name,
        unit=told.get("unit", ""),
        type=_WIRE_TYPES.get(told.get("type", ""), profiler_pb2.COLUMN_TYPE_GAUGE_F32),
    )


def synced(path: Path) -> None:
    """Make a written file private and durable."""
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _damages() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, KeyError, NotImplementedError)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
