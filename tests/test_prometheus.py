"""/metrics: what Prometheus reads of a whole host, by Prometheus' own tools; dcgm-exporter's names; the dashboard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gswarm.alert.rules import Rule, When
from gswarm.cluster.types import Device
from gswarm.config import Config, HttpConfig
from gswarm.host import dcgm
from gswarm.host.exposition import PREFIX, escape, exposed, labels, scaled
from gswarm.profiler.metrics import METRICS, Type, is_counter
from tests.support.cluster import PORTS, Cluster, cluster, seen

ROOT = Path(__file__).resolve().parent.parent
HOT = Rule("hot", When.ABOVE, "temperature_c", limit=1, clear=0)


async def page(running: Cluster) -> str:
    """The page, once both devices and the CPU have been sampled."""
    async with running.swarm.mirror((Device,)) as mirror:
        await seen(mirror, lambda: len(mirror.samples), lambda count: count == 3)
    url = f"http://127.0.0.1:{running.context.file.http_port}/metrics"
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(url, headers={"Authorization": f"Bearer {running.context.token}"})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.text


def families(text: str) -> dict[str, Family]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(text: str) -> Iterator[Sample]:
    return (sample for family in text_string_to_metric_families(text) for sample in family.samples)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    return tmp_path


async def test_the_page_is_what_prometheus_wants(here: Path) -> None:
    async with cluster(here, Config(host=PORTS, alerts=(HOT,))) as running, running.agent("n1", "2xH100"):
        text = await page(running)
        names = {sample.name for sample in samples(text)}
        assert all(re.fullmatch(r"gswarm_[a-z0-9_]+", name) for name in names)
        found = families(text)
        watts = found["gswarm_device_power_watts"]
        assert (watts.type, {s.value for s in watts.samples}) == ("gauge", {70})
        sample, _ = watts.samples
        assert sample.labels == {
            "node": "n1", "device": "n1:gpu0", "gpu": "0", "uuid": "SIM-n1-0",
            "model": "SIM NVIDIA H100 80GB HBM3", "kind": "simulated",
        }  # fmt: skip
        assert found["gswarm_device_energy_joules"].type == "counter"
        assert found["gswarm_device_memory_used_bytes"].type == "gauge"
        assert {s.labels["device"] for s in found["gswarm_device_load1"].samples} == {"n1:cpu"}
        assert {s.labels["phase"]: s.value for s in found["gswarm_nodes"].samples}["ready"] == 1
        assert [s.value for s in found["gswarm_device_up"].samples] == [1, 1, 1]
        assert "gswarm_tasks" in found and "gswarm_alerts" in found
        if promtool := shutil.which("promtool"):
            checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True)
            assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


async def test_promtool_agrees_with_every_name_a_device_may_have() -> None:
    if not (promtool := shutil.which("promtool")):
        pytest.skip("promtool is not installed")
    lines = []
    for metric, counts in [*((m.name, m.type is Type.COUNTER) for m in METRICS), ("x_total", False)]:
        found = exposed(metric, counts=counts)
        lines += [f"# HELP {found.name} {found.help}", f"# TYPE {found.name} {found.kind}", f"{found.name} 1"]
    checked = subprocess.run(
        [promtool, "check", "metrics"], input="\n".join(lines) + "\n", text=True, capture_output=True
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


async def test_alerts_are_there_while_they_fire(here: Path) -> None:
    async with cluster(here, Config(host=PORTS, alerts=(HOT,))) as running, running.agent("n1", "2xH100"):
        await page(running)
        found = families(await page(running))
        firing = {
            (s.labels["rule"], s.labels["subject"], s.labels["node"]) for s in found["gswarm_alert_firing"].samples
        }
        assert firing == {("hot", "n1:gpu0", "n1"), ("hot", "n1:gpu1", "n1")}
        assert {s.labels["severity"]: s.value for s in found["gswarm_alerts"].samples}["warning"] == 2


async def test_dcgm_names_only_where_they_are_asked_for_and_in_their_units(here: Path) -> None:
    (here / "a").mkdir()
    (here / "b").mkdir()
    async with cluster(here / "a") as running, running.agent("n1", "2xH100"):
        assert "DCGM" not in await page(running)
    both = Config(host=PORTS, http=HttpConfig(dcgm_names=True))
    async with cluster(here / "b", both) as running, running.agent("n1", "2xH100"):
        text = await page(running)
    found = {name: family for name, family in families(text).items() if name.startswith("DCGM")}
    assert {"DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_TEMP"} <= set(
        found
    )
    power, _ = found["DCGM_FI_DEV_POWER_USAGE"].samples
    assert power.value == 70, "watts"
    assert power.labels == {
        "gpu": "0", "UUID": "SIM-n1-0", "device": "nvidia0", "modelName": "SIM NVIDIA H100 80GB HBM3",
        "Hostname": "n1", "DCGM_FI_DRIVER_VERSION": "simulated",
    }  # fmt: skip
    assert found["DCGM_FI_DEV_FB_TOTAL"].samples[0].value == 80 * 1024, "MiB"
    assert found["DCGM_FI_DEV_SM_CLOCK"].samples[0].value == 345, "MHz"
    assert not any("CPU" in s.labels["UUID"] for family in found.values() for s in family.samples)


async def test_what_a_silent_node_said_is_not_shown_as_now(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(here) as running, running.agent("n1", "2xH100"):
        assert "gswarm_device_power_watts{" in await page(running)
        monkeypatch.setattr(running.context.hub, "age_s", lambda node: 31.0)
        text = await page(running)
        assert "gswarm_device_power_watts" not in text and 'gswarm_sample_age_seconds{node="n1"} 31' in text
        await running.swarm.profiler.start(name="night", adaptive=True, slowest=20)
        assert "gswarm_device_power_watts" in await page(running), "it may be silent for so long by right"


@pytest.mark.parametrize(
    ("metric", "counts", "name", "value", "told"),
    [
        ("gpu_util_percent", False, "gpu_util_ratio", 37.0, 0.37),
        ("power_mw", False, "power_watts", 70_500, 70.5),
        ("energy_mj", True, "energy_joules_total", 123_456_789_012_345, 123_456_789_012.345),
        ("sm_clock_mhz", False, "sm_clock_hertz", 1980, 1_980_000_000),
        ("temperature_c", False, "temperature_celsius", 31.0, 31),
        ("memory_total_bytes", False, "memory_size_bytes", 80 * 2**30, 80 * 2**30),
        ("pcie_rx_kib_per_s", False, "pcie_rx_bytes_per_second", 3, 3072),
        ("nvlink_rx_kib", True, "nvlink_rx_bytes_total", 5, 5120),
        ("process_count", False, "processes", 2, 2),
        ("tensor_active_percent", False, "tensor_active_ratio", 50.0, 0.5),
    ],
)
def test_names_and_values_are_in_base_units(metric: str, counts: bool, name: str, value: float, told: float) -> None:
    found = exposed(metric, counts=counts)
    assert found.name == PREFIX + name
    assert scaled(value, found.multiply, found.divide) == pytest.approx(told, rel=1e-15)
    assert found.kind == ("counter" if name.endswith("_total") else "gauge")


def test_no_two_metrics_share_a_name_and_only_counters_are_totals() -> None:
    made = [exposed(metric.name) for metric in METRICS]
    assert len({one.name for one in made}) == len(METRICS)
    assert all((one.kind == "counter") == is_counter(m.name) for one, m in zip(made, METRICS, strict=True))


@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True), st.text(max_size=20), max_size=4))
def test_labels_come_back_as_they_went_in(pairs: dict[str, str]) -> None:
    pairs = {name: value.replace("\r", " ") for name, value in pairs.items() if not name.startswith("__")}
    (family,) = text_string_to_metric_families(f"# TYPE x gauge\nx{labels(pairs)} 1\n")
    assert family.samples[0].labels == pairs
    assert "\n" not in escape("a\nb")


def test_fields_of_dcgm_are_named_as_there_and_once() -> None:
    names = [field.name for field in dcgm.FIELDS.values()]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"DCGM_FI_(DEV|PROF)_[A-Z0-9_]+", name) for name in names)


def test_the_dashboard_asks_only_for_what_is_served() -> None:
    board = json.loads((ROOT / "docs/grafana.json").read_text())
    source = (ROOT / "gswarm/host/prometheus.py").read_text()
    served = set(re.findall(r'"(gswarm_[a-z_0-9]+)"', source)) | {exposed(metric.name).name for metric in METRICS}
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"gswarm_[a-z_0-9]+", target["expr"])
    }
    assert asked and asked <= served
    assert [v["name"] for v in board["templating"]["list"]] == ["datasource", "node", "device"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken)) and max(x for x, _ in taken) < 24
    subprocess.run([sys.executable, str(ROOT / "docs/grafana.py"), "--check"], check=True)
