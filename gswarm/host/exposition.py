"""What each metric is called in Prometheus, in base units, and samples as lines of its text format."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from gswarm.profiler.metrics import BY_NAME, is_counter

PREFIX = "gswarm_device_"
# Suffix of our names to base unit and what a value is multiplied and divided by; longer suffixes first.
_UNITS: tuple[tuple[str, str, int, int], ...] = (
    ("_kib_per_s", "_bytes_per_second", 1024, 1),
    ("_bytes_per_s", "_bytes_per_second", 1, 1),
    ("_per_s", "_per_second", 1, 1),
    ("_percent", "_ratio", 1, 100),
    ("_bytes", "_bytes", 1, 1),
    ("_kib", "_bytes", 1024, 1),
    ("_mib", "_bytes", 1 << 20, 1),
    ("_mhz", "_hertz", 1_000_000, 1),
    ("_mw", "_watts", 1, 1000),
    ("_mj", "_joules", 1, 1000),
    ("_ms", "_seconds", 1, 1000),
    ("_us", "_seconds", 1, 1_000_000),
    ("_ns", "_seconds", 1, 1_000_000_000),
    ("_c", "_celsius", 1, 1),
    ("_s", "_seconds", 1, 1),
)
# Prometheus keeps _count for histograms.
_NAMES: Mapping[str, str] = {"process_count": "processes", "load_1m": "load1"}
_SPELT = {word.lower(): word for word in ("GPU", "SM", "PCIe", "NVLink", "ECC", "XID", "FP16", "FP32", "FP64", "DRAM")}


@dataclass(frozen=True, slots=True)
class Exposed:
    """A device metric as Prometheus sees it: value * multiply / divide, in the unit of `name`."""

    name: str
    kind: str
    help: str
    multiply: int = 1
    divide: int = 1


@functools.cache
def exposed(metric: str, *, counts: bool | None = None) -> Exposed:
    """The Prometheus side of a metric; `counts` says whether one that is not in our table only grows."""
    stem, unit, multiply, divide = _NAMES.get(metric, metric), "", 1, 1
    for suffix, base, up, down in _UNITS:
        if stem.endswith(suffix):
            stem, unit, multiply, divide = stem.removesuffix(suffix), base, up, down
            break
    stem = stem.removesuffix("_total").removesuffix("_count")
    known = BY_NAME.get(metric)
    grows = is_counter(metric) if known is not None else bool(counts)
    source = f", from {known.source}" if known is not None else ""
    if metric.startswith("memory_total"):
        stem, unit = "memory_size", "_bytes"  # _total is a counter's
    words = " ".join(_SPELT.get(word, word) for word in stem.split("_"))
    in_unit = ", 0 to 1" if unit == "_ratio" else f" in{unit.replace('_', ' ')}" if unit else ""
    return Exposed(
        f"{PREFIX}{stem}{unit}{'_total' if grows else ''}",
        "counter" if grows else "gauge",
        f"{words[:1].upper()}{words[1:]}{in_unit}{source}.",
        multiply,
        divide,
    )


F32_DIGITS, F64_DIGITS = 7, 15


def number(value: float | int, digits: int = F64_DIGITS) -> str:
    """A value as text: whole numbers whole, others with as many digits as what they were made from has."""
    return str(value) if isinstance(value, int) else f"{value:.{digits}g}"


def scaled(value: float | int, multiply: int, divide: int) -> float | int:
    """The value in its base unit; whole numbers stay exact where they can."""
    if divide == 1:
        return value * multiply
    if isinstance(value, int) and value * multiply % divide == 0:
        return value * multiply // divide
    return value * multiply / divide


def escape(text: str) -> str:
    """A label's value, quoted for the format."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def labels(pairs: Mapping[str, str]) -> str:
    """Labels with their braces; empty for none."""
    inner = ",".join(f'{name}="{escape(value)}"' for name, value in pairs.items())
    return f"{{{inner}}}" if inner else ""


@dataclass(slots=True)
class Page:
    """Families in the order in which they were begun; a family without samples is left out."""

    _heads: dict[str, tuple[str, str]] = field(default_factory=dict)
    _lines: dict[str, list[str]] = field(default_factory=dict)

    def family(
        self, name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float | int]] = ()
    ) -> list[str]:
        """Begin a family; its lines, to append to."""
        if name not in self._heads:
            self._heads[name], self._lines[name] = (kind, text), []
        lines = self._lines[name]
        lines += [f"{name}{labels(pairs)} {number(value)}" for pairs, value in samples]
        return lines

    def text(self) -> str:
        """The whole page."""
        return "".join(self._written())

    def _written(self) -> Iterator[str]:
        for name, (kind, text) in self._heads.items():
            if lines := self._lines[name]:
                yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
                yield "\n".join(lines) + "\n"
