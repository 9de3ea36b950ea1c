"""Values to chunk bytes and back: bytes, files, JSON and numpy arrays; never pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gswarm.data.types import ChunkType
from gswarm.errors import InvalidError

if TYPE_CHECKING:
    import numpy as np

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | dict[str, "JsonValue"]
"""What `json` can write; NaN and infinities are refused."""

# Kinds that hold plain numbers or fixed-width text; "O" would need pickle, "V" has no portable name.
_DTYPE_KINDS = frozenset("biufcSUmM")


@dataclass(frozen=True, slots=True)
class Payload:
    """A value ready to be written: its type, and its bytes as one contiguous buffer.

    `dtype` is a numpy dtype string with byte order ("<f4") and `shape` its dimensions, both empty for other types.
    """

    type: ChunkType
    buffer: memoryview
    dtype: str = ""
    shape: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Length of the buffer, bytes."""
        return self.buffer.nbytes


def encode(value: object) -> Payload:
    """The payload of a Python value: bytes-like, numpy array, or anything that is JSON.

    Raises InvalidError for what none of these can hold exactly.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return Payload(ChunkType.BYTES, _flat(memoryview(value)))
    if type(value).__module__.partition(".")[0] == "numpy":
        return _encode_array(value)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InvalidError(
            f"a {type(value).__name__} cannot be stored",
            why=str(error),
            next="pass bytes, a numpy array, or JSON-like data",
            field="value",
        ) from None
    return Payload(ChunkType.JSON, memoryview(text.encode()))


def _flat(view: memoryview) -> memoryview:
    if not view.contiguous:
        view = memoryview(view.tobytes())
    return view.cast("B") if view.nbytes else memoryview(b"")


def _encode_array(value: object) -> Payload:
    import numpy as np

    array = np.asarray(value)
    check_dtype(array.dtype.str)
    array = np.ascontiguousarray(array).reshape(array.shape)
    # dtypes such as datetime64 do not export a buffer; their bytes do.
    raw = array.view(np.uint8) if array.ndim and array.size else np.frombuffer(array.tobytes(), np.uint8)
    return Payload(ChunkType.NUMPY, _flat(raw.data), array.dtype.str, array.shape)


def check_dtype(dtype: str) -> None:
    """Raise InvalidError unless `dtype` names plain fixed-size elements."""
    import numpy as np

    try:
        parsed = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as error:
        raise InvalidError(f"{dtype!r} is no numpy dtype", why=str(error), field="dtype") from None
    if parsed.kind not in _DTYPE_KINDS or parsed.fields or parsed.subdtype:
        raise InvalidError(
            f"arrays of dtype {dtype} cannot be stored",
            why="only numbers, booleans, dates and fixed-width text have bytes that mean the same everywhere",
            next="convert the array, or store its columns one by one",
            field="dtype",
        )


def expected_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes that an array of this dtype and shape takes."""
    import numpy as np

    check_dtype(dtype)
    return math.prod(shape) * np.dtype(dtype).itemsize


def decode(type_: ChunkType, buffer: memoryview, dtype: str = "", shape: Sequence[int] = ()) -> object:
    """The value of a chunk; an array is a read-only view of `buffer`, nothing is copied.

    Raises InvalidError when the metadata does not fit the bytes.
    """
    if type_ is ChunkType.JSON:
        return json.loads(bytes(buffer))
    if type_ is ChunkType.NUMPY:
        return _decode_array(buffer, dtype, shape)
    return buffer


def _decode_array(buffer: memoryview, dtype: str, shape: Sequence[int]) -> np.ndarray:
    import numpy as np

    if expected_bytes(dtype, shape) != buffer.nbytes:
        raise InvalidError(
            f"the chunk holds {buffer.nbytes} bytes", why=f"{dtype}{list(shape)} takes {expected_bytes(dtype, shape)}"
        )
    array = np.frombuffer(buffer, np.uint8).view(np.dtype(dtype)) if buffer.nbytes else np.empty(0, np.dtype(dtype))
    array = array.reshape(tuple(shape))
    array.flags.writeable = False
    return array


@dataclass(frozen=True, slots=True)
class FilePayload:
    """A file to be stored: where its bytes start, and how many there are."""

    type: ChunkType
    path: Path
    offset: int
    size_bytes: int
    dtype: str = ""
    shape: tuple[int, ...] = ()


def inspect_file(path: Path, type_: ChunkType | None = None) -> FilePayload:
    """What `data put FILE` stores: by its suffix, unless `type_` says otherwise.

    A .npy file becomes an array (its header goes to the metadata), a .json file is checked to be JSON.
    Raises InvalidError naming the file and, for JSON, line and column.
    """
    if not path.is_file():
        raise InvalidError(f"{path} is not a file", next="name an existing file", field="path")
    if type_ is None:
        type_ = {".npy": ChunkType.NUMPY, ".json": ChunkType.JSON}.get(path.suffix.lower(), ChunkType.FILE)
    size = path.stat().st_size
    if type_ is ChunkType.NUMPY:
        return _inspect_npy(path, size)
    if type_ is ChunkType.JSON:
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise InvalidError(f"{path} is not JSON", why=str(error), next="use --type file", field="path") from None
    return FilePayload(type_, path, 0, size)


def _inspect_npy(path: Path, size: int) -> FilePayload:
    from numpy.lib import format as npy

    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
    except ValueError as error:
        raise InvalidError(f"{path} is not a .npy file", why=str(error), next="use --type file", field="path") from None
    if fortran and len(shape) > 1:
        raise InvalidError(
            f"{path} is in Fortran order", next="save it with numpy.ascontiguousarray(...)", field="path"
        )
    if size - offset != expected_bytes(dtype.str, shape):
        raise InvalidError(
            f"{path} is cut or too long",
            why=f"{size - offset} bytes of data for {dtype.str}{list(shape)}",
            field="path",
        )
    return FilePayload(ChunkType.NUMPY, path, offset, size - offset, dtype.str, tuple(shape))


def npy_header(dtype: str, shape: Sequence[int]) -> bytes:
    """The .npy header before the bytes of such an array, for writing a chunk back to a file."""
    import io

    from numpy.lib import format as npy

    out = io.BytesIO()
    npy.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": tuple(shape)})
    return out.getvalue()
