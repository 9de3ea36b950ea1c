"""GPUs through real nvitop over a stub NVML: units, what is not given, what is lost, what hangs; in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gswarm.cluster.types import Device, DevicePhase
from tests.support.cluster import Cluster, cluster, seen
from tests.support.nvml import LOST, NO_PERMISSION, NOT_SUPPORTED, UNKNOWN, Stub, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler to build the stub NVML with")
GIB = 2**30
UNITS = {
    "gpu_util_percent": 10,
    "memory_util_percent": 5,
    "encoder_util_percent": 11,
    "decoder_util_percent": 12,
    "jpeg_util_percent": 13,
    "ofa_util_percent": 14,
    "temperature_c": 34,
    "memory_temperature_c": 55,
    "temperature_slowdown_c": 87,
    "temperature_shutdown_c": 92,
    "sm_clock_mhz": 1980,
    "memory_clock_mhz": 2619,
    "graphics_clock_mhz": 1965,
    "video_clock_mhz": 1770,
    "sm_clock_max_mhz": 1985,
    "memory_clock_max_mhz": 2624,
    "graphics_clock_max_mhz": 1970,
    "video_clock_max_mhz": 1775,
    "performance_state": 2,
    "clock_event_reasons": 0x4,
    "fan_percent": 40,
    "power_mw": 130_000,
    "power_limit_mw": 650_000,
    "power_limit_max_mw": 700_000,
    "pcie_generation": 5,
    "pcie_generation_max": 5,
    "pcie_width": 8,
    "pcie_width_max": 16,
    "pcie_replays": 3,
    "memory_used_bytes": 6 * GIB,
    "memory_free_bytes": 74 * GIB,
    "memory_total_bytes": 80 * GIB,
    "bar1_used_bytes": GIB,
    "bar1_total_bytes": 128 * GIB,
    "energy_mj": 5_000_000_000,
    "ecc_corrected_volatile": 0,
    "ecc_uncorrected_volatile": 0,
    "ecc_corrected_aggregate": 0,
    "ecc_uncorrected_aggregate": 0,
    "retired_pages": 3,
    "remapped_rows": 3,
    "process_count": 0,
    "foreign_memory_bytes": 0,
}


def child(code: str, env: dict[str, str], timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **env}, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def readings(
    stub: Stub, then: str = "", rounds: int = 1, warned: str = "", sampling: str = ""
) -> list[list[dict[str, Any]]]:
    """What each GPU gives, round by round: values as they are, what is absent as {"absent": reason}.

    `then`: rules set after the first; `sampling`: slow groups that are on.
    """
    code = f"""
        import json, pathlib, time
        from gswarm.profiler import nvml
        from gswarm.profiler.metrics import METRICS, Absent, Group
        gpus = nvml.discover("n1")
        def plain(value):
            return dict(absent=value.reason) if isinstance(value, Absent) else value
        def items(told):
            whole = dict.fromkeys((m.name for m in METRICS), told) if isinstance(told, Absent) else told
            return whole.items()
        for gpu in gpus:
            gpu.sampling = frozenset(Group(word) for word in {sampling.split()!r})
        for i in range({rounds}):
            print(json.dumps([
                dict((k, plain(v)) for k, v in items(gpu.read()))
                | dict(id=gpu.id, alias=gpu.describe().alias, detail=gpu.describe().detail, free=gpu.free_bytes(),
                       phase=int(gpu.describe().phase), limit=gpu.describe().power_limit_mw)
                for gpu in gpus
            ]), flush=True)
            input()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, **stub.env},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        first = process.stdout.readline()
        if then:
            stub.set(*then.splitlines())
        rest, errors = process.communicate("\n" * rounds, timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert errors == warned
    return [json.loads(line) for line in (first + rest).splitlines()]


def test_every_metric_comes_in_the_unit_of_its_name(tmp_path: Path) -> None:
    ((gpu,),) = readings(Stub(tmp_path, "devices 1"))
    assert {name: gpu[name] for name in UNITS} == UNITS
    assert gpu["id"] == "GPU-00000000-0000-4000-8000-000000000000" and gpu["alias"] == "n1:gpu0"
    assert gpu["limit"] == 650_000 and gpu["free"] == 74 * GIB


@pytest.mark.parametrize("count", [8, 64])
def test_a_machine_full_of_gpus(tmp_path: Path, count: int) -> None:
    (gpus,) = readings(Stub(tmp_path, f"devices {count}"))
    assert [gpu["alias"] for gpu in gpus] == [f"n1:gpu{i}" for i in range(count)]
    assert len({gpu["id"] for gpu in gpus}) == count


def test_what_a_gpu_does_not_give_is_absent_and_never_zero(tmp_path: Path) -> None:
    stub = Stub(
        tmp_path,
        "devices 3",
        f"fail 0 nvmlDeviceGetFanSpeed {NOT_SUPPORTED}",
        f"fail 0 nvmlDeviceGetMemoryInfo {NOT_SUPPORTED}",
        f"fail 1 nvmlDeviceGetComputeRunningProcesses_v3 {NO_PERMISSION}",
        "process 0 1 1048576",
        *silent(2),
    )
    (gpus,) = readings(stub)
    absent = {"absent": "not supported"}
    assert gpus[0]["fan_percent"] == gpus[0]["memory_used_bytes"] == gpus[0]["memory_total_bytes"] == absent
    assert gpus[0]["free"] is None
    assert gpus[0]["process_count"] == 1 and gpus[0]["foreign_memory_bytes"] == 1048576
    assert gpus[1]["process_count"] == gpus[1]["foreign_memory_bytes"] == {"absent": "Insufficient Permissions"}
    assert gpus[1]["power_mw"] == 190_000
    assert {name: gpus[2][name] for name in UNITS} == dict.fromkeys(UNITS, absent)


def silent(device: int) -> list[str]:
    """Rules of a device that knows its name and nothing else."""
    functions = (
        "UtilizationRates", "Temperature", "ClockInfo", "FanSpeed", "PowerUsage", "MemoryInfo", "TotalEnergyConsumption",
        "ComputeRunningProcesses_v3", "GraphicsRunningProcesses_v3", "PowerManagementLimit", "EncoderUtilization",
        "DecoderUtilization", "JpgUtilization", "OfaUtilization", "FieldValues", "MaxClockInfo", "PerformanceState",
        "CurrentClocksEventReasons", "PowerManagementLimitConstraints", "TemperatureThreshold", "BAR1MemoryInfo",
        "CurrPcieLinkGeneration", "CurrPcieLinkWidth", "MaxPcieLinkGeneration", "MaxPcieLinkWidth",
    )  # fmt: skip
    return [f"fail {device} nvmlDeviceGet{function} {NOT_SUPPORTED}" for function in functions]


def test_an_error_that_passes_is_not_taken_for_not_supported(tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 1", f"fail 0 nvmlDeviceGetPowerUsage {UNKNOWN}")
    before, after = readings(stub, then="devices 1", rounds=2)
    assert before[0]["power_mw"] == {"absent": "Unknown Error"}
    assert after[0]["power_mw"] == 130_000


def test_a_gpu_that_is_lost_says_so_and_leaves_the_others_alone(tmp_path: Path) -> None:
    first, then = readings(Stub(tmp_path, "devices 2"), then=f"devices 2\nfail 0 * {LOST}", rounds=2)
    assert first[0]["power_mw"] == 130_000
    assert {then[0][name]["absent"] for name in UNITS} == {"lost: GPU is lost"}
    assert then[0]["detail"] == "GPU is lost" and then[0]["phase"] != first[0]["phase"]
    assert then[0]["id"] == first[0]["id"]
    assert {name: then[1][name] for name in UNITS} == {name: first[1][name] for name in UNITS}


def test_a_gpu_lost_before_the_start_keeps_its_place(tmp_path: Path) -> None:
    (gpus,) = readings(Stub(tmp_path, "devices 3", f"fail 1 * {LOST}"), warned="GPU 1: GPU is lost\n")
    assert [gpu["alias"] for gpu in gpus] == ["n1:gpu0", "n1:gpu1", "n1:gpu2"]
    assert gpus[1]["power_mw"] == {"absent": "lost: GPU is lost"}
    assert gpus[2]["id"].endswith("000000000002") and gpus[2]["power_mw"] == 250_000


def test_a_machine_without_a_driver_says_nothing_alarming(tmp_path: Path) -> None:
    code = """
        import logging
        logging.basicConfig(level=logging.WARNING)
        from gswarm.profiler import nvml
        print(nvml.discover("n1"))
    """
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")  # shadows a real driver
    done = child(code, {"LD_LIBRARY_PATH": str(tmp_path)})
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


def test_a_call_that_hangs_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    code = """
        import threading
        from gswarm.profiler import nvml
        (gpu,) = nvml.discover("n1")
        import os, pathlib
        pathlib.Path(os.environ["STUB_NVML"]).with_suffix(".next").rename(os.environ["STUB_NVML"])
        reader = threading.Thread(target=gpu.read, daemon=True)
        reader.start()
        reader.join(1.0)
        print(reader.is_alive())
    """
    stub = Stub(tmp_path, "devices 1")
    (tmp_path / "nvml.next").write_text("devices 1\nhang 0 nvmlDeviceGetPowerUsage\n")
    assert child(code, stub.env).stdout == "True\n"


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path / "state"))
    async with cluster(tmp_path / "state") as found:
        yield found


async def test_a_hung_gpu_is_na_with_its_age_while_the_others_go_on(running: Cluster, tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 2")
    stuck, well = (f"GPU-00000000-0000-4000-8000-{i:012x}" for i in range(2))
    async with running.swarm.mirror(samples=True) as mirror:
        with running.agent_process("n1", stub.env, tmp_path) as process:
            await seen(mirror, lambda: mirror.samples.get(stuck, {}), lambda values: values.get("power_mw") == 130_000)
            stub.set("devices 2", "hang 0 nvmlDeviceGetPowerUsage")
            reason = await seen(
                mirror,
                lambda: mirror.reasons.get(stuck, {}).get("power_mw", ""),
                lambda text: "no answer for" in text and "for 0 s" not in text,
            )
            assert reason.startswith("timed out")
            assert "power_mw" not in mirror.samples[stuck] and "gpu_util_percent" not in mirror.samples[stuck]
            phase = await seen(mirror, lambda: mirror.rows(Device)[stuck].phase, lambda p: p is DevicePhase.LOST)
            assert phase is DevicePhase.LOST
            since = mirror.sampled_at[well]
            await seen(mirror, lambda: mirror.sampled_at[well], lambda at: at > since + 1)
            assert mirror.samples[well]["power_mw"] == 190_000
            assert mirror.rows(Device)[well].phase is DevicePhase.READY
            # Told to stop it ends, though a thread is inside the driver: nvitop alone would hold it for two minutes.
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


async def test_a_gpu_that_answers_again_is_back(running: Cluster, tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 1")
    gpu = "GPU-00000000-0000-4000-8000-000000000000"
    async with running.swarm.mirror(samples=True) as mirror:
        with running.agent_process("n1", stub.env, tmp_path):
            await seen(mirror, lambda: mirror.samples.get(gpu, {}), lambda values: "power_mw" in values)
            stub.set("devices 1", f"fail 0 * {LOST}")
            lost = await seen(mirror, lambda: mirror.rows(Device)[gpu], lambda d: d.phase is DevicePhase.LOST)
            assert lost.detail == "GPU is lost"
            stub.set("devices 1")
            await seen(mirror, lambda: mirror.rows(Device)[gpu].phase, lambda p: p is DevicePhase.READY)
            await seen(mirror, lambda: mirror.samples.get(gpu, {}), lambda values: values.get("power_mw") == 130_000)


async def test_a_driver_that_hangs_at_the_start_still_lets_the_node_join(running: Cluster, tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 2", "hang 1 nvmlDeviceGetUUID")
    async with running.swarm.mirror(samples=True) as mirror:
        with running.agent_process("n1", stub.env, tmp_path) as process:
            devices = await seen(
                mirror, lambda: {d.alias: d for d in mirror.rows(Device).values()}, lambda d: len(d) == 3
            )
            assert devices["n1:gpu0"].phase is DevicePhase.READY
            assert devices["n1:gpu1"].phase is DevicePhase.LOST and "did not answer" in devices["n1:gpu1"].detail
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
