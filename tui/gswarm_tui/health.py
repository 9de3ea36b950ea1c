"""What a device tells beside its gauges, in one line a subject: what is wrong first, then clocks, links, memory, ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gswarm.cluster.types import Device, DeviceKind
from gswarm.profiler.matrix import word
from gswarm.profiler.metrics import BY_NAME, METRICS, NOT_SUPPORTED, THROTTLES, clock_events

from . import figures
from .widgets.spans import Spans

LABEL = 11
Values = Mapping[str, float]
_KIB = 1024
_TOLD = frozenset(
    {
        "clock_event_reasons", "xid_last", "ecc_corrected_volatile", "ecc_uncorrected_volatile", "ecc_corrected_aggregate",
        "ecc_uncorrected_aggregate", "retired_pages", "remapped_rows", "sm_clock_mhz", "sm_clock_max_mhz",
        "memory_clock_mhz", "memory_clock_max_mhz", "graphics_clock_mhz", "graphics_clock_max_mhz", "video_clock_mhz",
        "video_clock_max_mhz", "performance_state", "pcie_generation", "pcie_width", "pcie_generation_max",
        "pcie_width_max", "pcie_rx_kib_per_s", "pcie_tx_kib_per_s", "pcie_replays", "nvlink_rx_kib_per_s",
        "nvlink_tx_kib_per_s", "nvlink_rx_kib", "nvlink_tx_kib", "nvlink_errors", "sm_active_percent",
        "sm_occupancy_percent", "fp16_active_percent", "fp32_active_percent", "fp64_active_percent",
        "encoder_util_percent", "decoder_util_percent", "jpeg_util_percent", "ofa_util_percent", "memory_temperature_c",
        "temperature_slowdown_c", "temperature_shutdown_c", "fan_percent", "power_limit_mw", "power_limit_max_mw",
        "bar1_used_bytes", "bar1_total_bytes", "load_1m", "swap_used_bytes", "disk_used_bytes", "disk_total_bytes",
        "disk_read_bytes", "disk_written_bytes", "network_rx_bytes", "network_tx_bytes", "agent_cpu_percent",
        "agent_memory_bytes", "memory_total_bytes", "memory_free_bytes", "foreign_memory_bytes", "process_count",
    }
)  # fmt: skip
"""What the lines below say, or the ledger and the processes do."""
_OF_MACHINES = frozenset(metric.name for metric in METRICS if "CPU only" in metric.source)
"""What no GPU is asked for."""
_SPOILT = {"retired_pages": "pages retired", "remapped_rows": "rows remapped"}


def line(label: str, text: str, style: str = "text") -> Spans:
    """A label and what it is about."""
    return ((f"{label:<{LABEL}}", "dim"), (text, style))


def lines(device: Device, values: Values, reasons: Mapping[str, str], gauges: Iterable[str]) -> tuple[Spans, ...]:
    """Every line of a device; `gauges` are metrics that are shown elsewhere."""
    found = [
        *_alarms(values),
        *_clocks(values),
        *_links(values),
        *_activity(values),
        *_limits(values),
        *_machine(values),
        *_ways(device),
    ]
    for name, value in sorted(values.items()):
        if name not in _TOLD and name not in gauges and not _is_single_link(name):
            label, text = reading(name, value)
            found.append(line(label[: LABEL - 1] if len(label) >= LABEL else label, text))
    absent = {n: why for n, why in reasons.items() if device.kind is DeviceKind.CPU or n not in _OF_MACHINES}
    return (*found, *_missing(absent))


def _alarms(values: Values) -> list[Spans]:
    found: list[Spans] = []
    if (mask := values.get("clock_event_reasons")) is not None:
        held = clock_events(int(mask))
        is_bad = bool(int(mask) & THROTTLES)
        found.append(line("throttled", ", ".join(held) or "no", "failed" if is_bad else "text"))
    if (xid := values.get("xid_last")) is not None:
        found.append(line("last XID", f"{xid:.0f}", "failed"))
    corrected, uncorrected = values.get("ecc_corrected_volatile"), values.get("ecc_uncorrected_volatile")
    if corrected is not None and uncorrected is not None:
        ever = [values.get(f"ecc_{kind}_aggregate") for kind in ("corrected", "uncorrected")]
        text = f"{corrected:.0f} corrected, {uncorrected:.0f} not"
        if None not in ever:
            text += f"  ever {ever[0]:.0f}, {ever[1]:.0f}"
        found.append(line("ECC errors", text, "failed" if uncorrected else "text"))
    spoilt = [f"{values[name]:.0f} {word}" for name, word in _SPOILT.items() if values.get(name)]
    if spoilt:
        found.append(line("memory", ", ".join(spoilt), "changing"))
    return found


def _clocks(values: Values) -> list[Spans]:
    parts = []
    for name, title in (("sm", "SM"), ("memory", "memory"), ("video", "video")):
        if (now := values.get(f"{name}_clock_mhz")) is not None:
            most = values.get(f"{name}_clock_max_mhz")
            parts.append(f"{title} {now:.0f}" + (f"/{most:.0f}" if most is not None else ""))
    if not parts:
        return []
    state = values.get("performance_state")
    return [line("clocks", "  ".join(parts) + " MHz" + (f"  P{state:.0f}" if state is not None else ""))]


def _links(values: Values) -> list[Spans]:
    found: list[Spans] = []
    if (generation := values.get("pcie_generation")) is not None:
        text = f"gen {generation:.0f} ×{values.get('pcie_width', 0):.0f}{_traffic(values, 'pcie')}"
        if replays := values.get("pcie_replays"):
            text += f"  {replays:.0f} replays"
        found.append(line("PCIe", text))
    errors, traffic = values.get("nvlink_errors"), _traffic(values, "nvlink").strip()
    if errors is not None or (traffic and any(values.get(f"nvlink_{way}_kib_per_s") for way in ("rx", "tx"))):
        total = [values.get(f"nvlink_{way}_kib") for way in ("rx", "tx")]
        text = traffic if traffic or None in total else _bytes(total)
        found.append(
            line("NVLink", "  ".join(filter(None, (text, f"{errors or 0:.0f} errors"))), "failed" if errors else "text")
        )
    return found


def _bytes(total: Iterable[float | None]) -> str:
    received, sent = (figures.size((kib or 0) * _KIB) for kib in total)
    return f"{received} received, {sent} sent"


def _traffic(values: Values, link: str) -> str:
    rates = [values.get(f"{link}_{way}_kib_per_s") for way in ("rx", "tx")]
    if rates[0] is None or rates[1] is None:
        return ""
    return f"  in {figures.size(rates[0] * _KIB)}/s  out {figures.size(rates[1] * _KIB)}/s"


def _percents(values: Values, names: Mapping[str, str]) -> str:
    given = [f"{title} {values[name]:.0f}" for name, title in names.items() if name in values]
    return ", ".join(given) + " %" if given else ""


def _activity(values: Values) -> list[Spans]:
    cores = _percents(
        values,
        {
            "sm_active_percent": "active",
            "sm_occupancy_percent": "occupied",
            "fp16_active_percent": "FP16",
            "fp32_active_percent": "FP32",
            "fp64_active_percent": "FP64",
        },
    )
    engines = _percents(
        values,
        {
            "encoder_util_percent": "encoder",
            "decoder_util_percent": "decoder",
            "jpeg_util_percent": "JPEG",
            "ofa_util_percent": "OFA",
        },
    )
    return [line(label, text) for label, text in (("SMs", cores), ("engines", engines)) if text]


def _limits(values: Values) -> list[Spans]:
    found: list[Spans] = []
    heat = [
        f"{title} {values[name]:.0f}"
        for name, title in (
            ("memory_temperature_c", "memory"),
            ("temperature_slowdown_c", "slows at"),
            ("temperature_shutdown_c", "ends at"),
        )
        if name in values
    ]
    if heat:
        fan = f"  fan {values['fan_percent']:.0f} %" if "fan_percent" in values else ""
        found.append(line("heat", f"{', '.join(heat)} °C{fan}"))
    if (limit := values.get("power_limit_mw")) is not None:
        most = values.get("power_limit_max_mw")
        found.append(line("power cap", f"{limit / 1000:.0f} W" + (f" of {most / 1000:.0f}" if most else "")))
    if (used := values.get("bar1_used_bytes")) is not None:
        found.append(line("BAR1", f"{figures.size(used)} of {figures.size(values.get('bar1_total_bytes'))}"))
    return found


def _machine(values: Values) -> list[Spans]:
    found: list[Spans] = []
    if (load := values.get("load_1m")) is not None:
        found.append(line("load", f"{load:.2f}  swap {figures.size(values.get('swap_used_bytes'))}"))
    if (used := values.get("disk_used_bytes")) is not None:
        read, written = (figures.size(values.get(f"disk_{way}_bytes")) for way in ("read", "written"))
        total = figures.size(values.get("disk_total_bytes"))
        found.append(line("disk", f"{figures.size(used)} of {total}  read {read}, written {written}"))
    if (received := values.get("network_rx_bytes")) is not None:
        sent = figures.size(values.get("network_tx_bytes"))
        found.append(line("network", f"received {figures.size(received)}, sent {sent}"))
    if (cost := values.get("agent_cpu_percent")) is not None:
        memory = figures.size(values.get("agent_memory_bytes"))
        found.append(line("agent", f"{cost:.1f} % of a core, {memory}"))
    return found


def _ways(device: Device) -> list[Spans]:
    found: list[Spans] = []
    by_word: dict[str, list[str]] = {}
    for path in device.paths:
        by_word.setdefault(word(path), []).append(f"gpu{path.index}")
    if by_word:
        text = "  ".join(f"{way} {_first_to_last(names)}" for way, names in by_word.items())
        found.append(line("ways", text))
    near = [f"CPUs {device.cpu_affinity}"] if device.cpu_affinity else []
    if device.numa_node is not None:
        near.append(f"NUMA node {device.numa_node}")
    if near:
        found.append(line("near", ", ".join(near)))
    return found


def _first_to_last(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]}…{names[-1]} ({len(names)})"


def _missing(reasons: Mapping[str, str]) -> list[Spans]:
    """What cannot be told now, each with its reason; what the device never gives, in one line."""
    never = [reading(name, 0.0)[0] for name, why in sorted(reasons.items()) if why == NOT_SUPPORTED]
    found: list[Spans] = [
        line(reading(name, 0.0)[0][: LABEL - 1], f"NA: {why}", "faint")
        for name, why in sorted(reasons.items())
        if why != NOT_SUPPORTED and not _is_single_link(name)
    ]
    if never:
        found.append(((f"{'not given':<{LABEL}}", "faint"), (", ".join(never), "faint")))
    return found


def _is_single_link(name: str) -> bool:
    return name in BY_NAME and name.startswith("nvlink") and name[6].isdigit()


def reading(name: str, value: float) -> tuple[str, str]:
    """A metric's name without its unit, and its value with it."""
    head, _, unit = name.rpartition("_")
    label = (head or name).replace("_", " ")
    match unit:
        case "mj":
            return label, f"{figures.number(value / 1000)} J"
        case "mw":
            return label, f"{value / 1000:.0f} W"
        case "bytes":
            return label, figures.size(value)
        case "mhz":
            return label, f"{value:.0f} MHz"
        case "percent":
            return label, f"{value:.0f} %"
        case "c":
            return label, f"{value:.0f} °C"
    return name.replace("_", " "), f"{value:g}"
