"""What NVML tells beyond the basics, over the stub: GPM, NVLink, ECC, XIDs, MIG, processes, topology, switches, extra metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gswarm.cluster.types import Device, DeviceKind, Event, PathKind, SamplingGroup
from gswarm.errors import InvalidError, NotFoundError
from gswarm.profiler import metrics
from gswarm.profiler.metrics import BY_NAME, METRICS, clock_events
from gswarm.profiler.recording import Recording
from gswarm.profiler.types import Session, session_sealed
from tests.support.cluster import Cluster, cluster, seen
from tests.support.nvml import FUNCTION_NOT_FOUND, LOST, NOT_SUPPORTED, UNKNOWN, Stub, compiler
from tests.test_nvml import UNITS, child, readings

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler to build the stub NVML with")
NOT_GIVEN = {"absent": "not supported"}
FIRST = "GPU-00000000-0000-4000-8000-000000000000"
KIB_OF_MIB = 1024
GPM_NAMES = [m.name for m in METRICS if "nvmlGpm" in m.source or m.name == "pcie_tx_kib_per_s"]


def last(stub: Stub, **options: Any) -> list[dict[str, Any]]:
    """The second sample of each GPU: what is measured between two is there."""
    return readings(stub, rounds=2, **options)[1]


def test_gpm_tells_what_the_sms_do_and_its_mib_become_kib(tmp_path: Path) -> None:
    first, (gpu,) = readings(Stub(tmp_path, "devices 1", "value * gpm5 37", "value * gpm21 3"), rounds=2)
    assert first[0]["tensor_active_percent"] == {"absent": "measured between two samples"}
    assert gpu["tensor_active_percent"] == 37.0 and gpu["sm_active_percent"] == 2.0
    assert gpu["pcie_rx_kib_per_s"] == 3 * KIB_OF_MIB and gpu["pcie_tx_kib_per_s"] == 20 * KIB_OF_MIB
    assert gpu["nvlink_rx_kib_per_s"] == 60 * KIB_OF_MIB


def test_one_gpm_metric_that_is_not_supported_takes_no_other_with_it(tmp_path: Path) -> None:
    (gpu,) = last(Stub(tmp_path, "devices 1", f"fail * gpm11 {NOT_SUPPORTED}", f"fail * gpm13 {UNKNOWN}"))
    assert gpu["fp64_active_percent"] == NOT_GIVEN and gpu["fp16_active_percent"] == {"absent": "Unknown Error"}
    assert gpu["fp32_active_percent"] == 12.0 and gpu["dram_active_percent"] == 10.0


def test_before_hopper_pcie_traffic_is_measured_only_when_asked_for(tmp_path: Path) -> None:
    rules = ("devices 1", f"fail * nvmlGpmQueryDeviceSupport {NOT_SUPPORTED}")
    (off,) = last(Stub(tmp_path, *rules))
    assert not {"pcie_rx_kib_per_s", *GPM_NAMES} & off.keys()
    (on,) = last(Stub(tmp_path, *rules), sampling="pcie")
    assert (on["pcie_rx_kib_per_s"], on["pcie_tx_kib_per_s"]) == (7000, 3000)


def test_nvlink_counters_keep_64_bits_for_each_link_and_the_total(tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 2", "link 0 1 4", "nvswitch 0")
    gpu, other = last(stub, sampling="nvlink")
    assert (gpu["nvlink_rx_kib"], gpu["nvlink_tx_kib"]) == (2**40 + 1001, 2**40 + 1000)
    assert (gpu["nvlink3_rx_kib"], gpu["nvlink3_tx_kib"]) == (2**40 + 7, 2**40 + 6)
    assert gpu["nvlink4_rx_kib"] == NOT_GIVEN and gpu["nvlink_errors"] == 1
    assert other["nvlink_rx_kib"] == 2**40 + 1001


def test_a_gpu_without_nvlink_has_neither_counters_nor_errors(tmp_path: Path) -> None:
    (gpu,) = last(Stub(tmp_path, "devices 1"), sampling="nvlink")
    assert gpu["nvlink_rx_kib"] == gpu["nvlink_errors"] == gpu["nvlink0_tx_kib"] == NOT_GIVEN


def test_ecc_errors_retired_pages_and_remapped_rows_are_counted(tmp_path: Path) -> None:
    stub = Stub(
        tmp_path,
        "devices 1",
        "value 0 field4 2",
        "value 0 field6 9",
        "value 0 field30 40",
        f"fail 0 field142 {UNKNOWN}",
    )
    (gpu,) = last(stub)
    assert (gpu["ecc_uncorrected_volatile"], gpu["ecc_uncorrected_aggregate"], gpu["ecc_corrected_volatile"]) == (
        2,
        9,
        0,
    )
    assert gpu["retired_pages"] == 41
    # A sum of which a part is missing is no number.
    assert gpu["remapped_rows"] == {"absent": "Unknown Error"}


def test_a_field_that_is_not_supported_is_absent_alone(tmp_path: Path) -> None:
    (gpu,) = last(Stub(tmp_path, "devices 1", f"fail 0 field82 {NOT_SUPPORTED}", f"fail 0 field3 {NOT_SUPPORTED}"))
    assert gpu["memory_temperature_c"] == gpu["ecc_corrected_volatile"] == NOT_GIVEN
    assert gpu["ecc_uncorrected_volatile"] == 0 and gpu["pcie_replays"] == 3


def test_throttle_reasons_are_bits_with_names_also_from_an_older_driver(tmp_path: Path) -> None:
    (gpu,) = last(Stub(tmp_path, "devices 1", "value 0 clock_events 68"))
    assert clock_events(gpu["clock_event_reasons"]) == ["power cap", "hardware thermal slowdown"]
    (old,) = last(Stub(tmp_path, "devices 1", f"fail 0 nvmlDeviceGetCurrentClocksEventReasons {FUNCTION_NOT_FOUND}"))
    assert clock_events(old["clock_event_reasons"]) == ["hardware slowdown"]


def test_a_performance_state_the_driver_does_not_know_is_not_32(tmp_path: Path) -> None:
    (gpu,) = last(Stub(tmp_path, "devices 1", "value 0 pstate 32"))
    assert gpu["performance_state"] == {"absent": "not known to the driver"}


CALLS = """
    from gswarm.profiler import nvml
    from nvitop import libnvml
    (gpu,) = nvml.discover("n1")
    asked = []
    for name in dir(libnvml):
        if name.startswith("nvmlDeviceGet"):
            def counted(*a, name=name, real=getattr(libnvml, name)):
                asked.append(name)
                return real(*a)
            setattr(libnvml, name, counted)
    (gpu,) = nvml.discover("n1")
    for _ in range(4):
        asked.clear()
        gpu.read()
        print(*sorted(asked))
"""


def test_slow_fields_are_asked_for_less_and_what_never_moves_once(tmp_path: Path) -> None:
    done = child(CALLS, Stub(tmp_path, "devices 1", f"fail 0 nvmlDeviceGetFanSpeed {NOT_SUPPORTED}").env)
    assert done.returncode == 0, done.stderr
    first, *later = (line.split() for line in done.stdout.splitlines())
    seldom = {
        "nvmlDeviceGetFanSpeed",
        "nvmlDeviceGetMaxClockInfo",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetBAR1MemoryInfo",
    }
    always = {"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetMemoryInfo"}
    assert seldom | always <= set(first)
    for calls in later:
        assert always <= set(calls) and not seldom & set(calls)
        assert calls.count("nvmlDeviceGetUtilizationRates") == 1, "one call gives both of its metrics"


def test_processes_have_a_user_a_program_memory_and_their_share(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys; print('up', flush=True); sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, str(script), "--token", "secret"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as training:
        assert training.stdout is not None and training.stdout.readline()
        code = """
            import json
            from gswarm.codec import from_proto, to_plain
            from gswarm.cluster.types import DeviceProcess
            from gswarm.profiler import nvml
            (gpu,) = nvml.discover("n1")
            gpu.read()
            print(json.dumps([to_plain(from_proto(p, DeviceProcess)) for p in gpu.processes]))
        """
        pid = training.pid
        rules = (f"process 0 {pid} 5000", f"share 0 {pid} 37", "process 0 1 7", "process 0 4194303 9")
        done = child(code, Stub(tmp_path, "devices 1", *rules).env)
        training.kill()
    found = {process["pid"]: process for process in json.loads(done.stdout)}
    mine = found[pid]
    assert mine["command"].endswith("train.py") and "secret" not in mine["command"] and mine["user"]
    assert (mine["memory_bytes"], mine["sm_percent"], mine["ours"]) == (5000, 37, False)
    assert found[1]["sm_percent"] == 0 and found[1]["command"]
    assert (found[4194303]["command"], found[4194303]["user"], found[4194303]["memory_bytes"]) == ("", "", 9)


def test_mig_instances_are_devices_of_their_own(tmp_path: Path) -> None:
    gpus = last(Stub(tmp_path, "devices 2", "mig 0 2"))
    assert [gpu["alias"] for gpu in gpus] == ["n1:gpu0", "n1:gpu1", "n1:gpu2"]
    assert [gpu["id"][:3] for gpu in gpus] == ["MIG", "MIG", "GPU"]
    assert gpus[0]["memory_total_bytes"] == 10 * 2**30 and gpus[0]["power_mw"] == NOT_GIVEN
    # NVML's utilisation is not for instances; GPM's is.
    assert gpus[0]["gpu_util_percent"] == NOT_GIVEN and gpus[0]["sm_active_percent"] == 2.0


XIDS = """
    import queue
    from gswarm.profiler import nvml
    told = queue.Queue()
    gpus = nvml.discover("n1", (), lambda gpu, number: told.put((gpu.index, number)))
    for gpu in gpus:
        gpu.read()
    print(sorted(told.get(timeout=20) for _ in range(4)))
    print([gpu.read()["xid_last"] for gpu in gpus])
"""


def test_an_xid_concerns_its_mig_instance_or_all_of_a_gpu(tmp_path: Path) -> None:
    # The stub's instances are 7 and 8.
    done = child(XIDS, Stub(tmp_path, "devices 2", "mig 0 2", "xid 0 13 8", "xid 1 31", "xid 0 79").env)
    assert done.stdout.splitlines() == ["[(0, 79), (1, 13), (1, 79), (2, 31)]", "[79, 79, 31]"], done.stderr


FALLEN = """
    import queue
    from gswarm.profiler import nvml
    told = queue.Queue()
    gpus = nvml.discover("n1", (), lambda gpu, number: told.put((gpu.index, number)))
    for gpu in gpus:
        gpu.read()
    print("ready", flush=True)
    print(told.get(timeout=20), gpus[1].read(), flush=True)
"""


def test_the_xid_of_a_gpu_that_has_fallen_off_the_bus_is_heard(tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 2")
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FALLEN)],
        env={**os.environ, **stub.env},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        stub.set("devices 2", f"fail 1 * {LOST}", "xid 1 79")
        told = process.communicate(timeout=30)[0]
    assert told == "(1, 79) Absent(reason='lost: GPU is lost')\n"


TOPOLOGY = """
    import json
    from gswarm.profiler import nvml
    for gpu in nvml.discover("n1"):
        ways = [(p.index, p.kind, p.nvlinks) for p in gpu.paths]
        print(json.dumps([ways, gpu.cpu_affinity, gpu.numa_node]))
"""


def ways(stub: Stub) -> list[Any]:
    """Per GPU: (index, kind, NVLinks) of each way, near CPUs, NUMA node."""
    done = child(TOPOLOGY, stub.env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_topology_knows_switches_straight_links_and_pcie(tmp_path: Path) -> None:
    nvlink, pix, node, sys_ = 1, 3, 6, 7
    switched = ways(Stub(tmp_path, "devices 8", "nvswitch 18"))
    assert all(way == [[i, nvlink, 18] for i in range(8) if i != me] for me, (way, _, _) in enumerate(switched))
    assert [(cpus, numa) for _, cpus, numa in switched] == [("0-3", 0)] * 4 + [("4-7", 1)] * 4
    plain = ways(Stub(tmp_path, "devices 8", "link 0 1 4"))
    assert plain[0][0][:4] == [[1, nvlink, 4], [2, node, 0], [3, node, 0], [4, sys_, 0]]
    assert plain[2][0][2] == [3, pix, 0]


def test_a_gpu_that_does_not_answer_leaves_the_others_their_ways(tmp_path: Path) -> None:
    found = ways(Stub(tmp_path, "devices 3", f"fail 1 nvmlDeviceGetPciInfo_v3 {LOST}"))
    assert [[index for index, _, _ in way] for way, _, _ in found] == [[2], [], [0]]


def test_every_metric_of_the_table_is_tested_over_the_stub_or_comes_from_the_machine() -> None:
    host = {m.name for m in METRICS if "CPU only" in m.source}
    switched = {m.name for m in METRICS if m.group}
    elsewhere = {"nvlink_errors", "xid_last"}
    assert {m.name for m in METRICS} - host - switched - elsewhere - set(GPM_NAMES) == set(UNITS)
    assert metrics.is_counter("energy_mj") and not metrics.is_counter("memory_used_bytes")


# With a host


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path / "state"))
    async with cluster(tmp_path / "state") as found:
        yield found


async def test_an_xid_is_an_event_and_the_last_one_a_metric(running: Cluster, tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 2")
    async with running.swarm.mirror(samples=True) as mirror:
        with running.agent_process("n1", stub.env, tmp_path):
            none = await seen(mirror, lambda: mirror.reasons.get(FIRST, {}).get("xid_last", ""), bool)
            assert none == "none since the agent started"
            stub.set("devices 2", "xid 0 79", "xid 1 31")
            events = await seen(
                mirror,
                lambda: {e.subject: e for e in mirror.rows(Event).values() if e.type == "device.xid"},
                lambda found: len(found) == 2,
            )
            assert events[FIRST].message == "n1:gpu0: XID 79: GPU has fallen off the bus"
            assert [e.severity.value for e in events.values()] == ["error", "warning"]
            assert await seen(mirror, lambda: mirror.samples[FIRST].get("xid_last"), lambda n: n is not None) == 79


async def test_the_devices_of_a_node_tell_topology_processes_and_mig(running: Cluster, tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 3", "mig 2 1", "nvswitch 18")
    async with running.swarm.mirror(samples=True) as mirror:
        with running.agent_process("n1", stub.env, tmp_path):
            await seen(mirror, lambda: len(mirror.rows(Device)), lambda count: count == 4)
            gpu = mirror.rows(Device)[FIRST]
            assert [(p.index, p.kind, p.nvlinks) for p in gpu.paths] == [
                (1, PathKind.NVLINK, 18), (2, PathKind.NVLINK, 18)
            ]  # fmt: skip
            kinds = [d.kind for d in sorted(mirror.rows(Device).values(), key=lambda d: d.alias)]
            assert kinds == [DeviceKind.CPU, DeviceKind.GPU, DeviceKind.GPU, DeviceKind.MIG]
            (matrix,) = (await running.swarm.profiler.topology("n1")).nodes
            assert [row.to for row in matrix.rows] == [
                ("X", "NV18", "NV18"),
                ("NV18", "X", "NV18"),
                ("NV18", "NV18", "X"),
            ]
            assert matrix.lines()[0].split() == ["n1", "gpu0", "gpu1", "gpu2", "CPUS", "NUMA"]
            with pytest.raises(NotFoundError, match="n1"):
                await running.swarm.profiler.topology("n2")
            stub.set("devices 3", "mig 2 1", f"process 0 {os.getpid()} 5000")
            found = await seen(mirror, lambda: mirror.rows(Device)[FIRST].processes, bool)
            assert [(p.pid, p.memory_bytes) for p in found] == [(os.getpid(), 5000)]


async def test_slow_metrics_are_switched_while_the_agent_runs_and_stay_so(running: Cluster, tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 1", "nvswitch 2")
    swarm = running.swarm
    async with swarm.mirror(samples=True) as mirror:
        with running.agent_process("n1", stub.env, tmp_path) as process:
            await seen(mirror, lambda: mirror.samples.get(FIRST, {}), lambda values: "power_mw" in values)
            assert "nvlink_rx_kib" not in mirror.samples[FIRST]
            assert (await swarm.profiler.sampling(nvlink="on")).changed == 1
            assert (await swarm.profiler.sampling(nvlink="on")).changed == 0
            (event,) = await swarm.event.list(filter=["type=profiler.sampling"])
            assert (event.message, event.actor, event.subject) == ("n1 samples nvlink", "local", "n1")
            values = await seen(mirror, lambda: mirror.samples[FIRST], lambda values: "nvlink1_tx_kib" in values)
            assert values["nvlink_rx_kib"] == 2**40 + 1001 and "nvlink2_tx_kib" not in values
            process.kill()
            process.wait(10)
        with running.agent_process("n1", stub.env, tmp_path):
            at = mirror.sampled_at[FIRST]
            await seen(mirror, lambda: mirror.sampled_at[FIRST], lambda now: now > at)
            await seen(mirror, lambda: mirror.samples[FIRST], lambda values: "nvlink1_tx_kib" in values)
            assert (await swarm.node.show("n1")).sampling == (SamplingGroup.NVLINK,)
            await swarm.profiler.sampling(nvlink="off", nodes=["n1"])
            why = await seen(mirror, lambda: mirror.reasons[FIRST].get("nvlink_rx_kib", ""), bool)
            assert "--nvlink on" in why and "nvlink_rx_kib" not in mirror.samples[FIRST]


async def test_a_switch_that_cannot_be_is_refused_whole(running: Cluster) -> None:
    with pytest.raises(InvalidError, match="nothing"):
        await running.swarm.profiler.sampling()
    async with running.agent("n1"):
        with pytest.raises(NotFoundError, match="n1"):
            await running.swarm.profiler.sampling(pcie="on", nodes=["n1", "n11"])
        assert (await running.swarm.node.show("n1")).sampling == ()


async def test_late_watchers_learn_why_values_are_missing(running: Cluster, tmp_path: Path) -> None:
    stub = Stub(
        tmp_path,
        "devices 2",
        f"fail 0 nvmlDeviceGetFanSpeed {UNKNOWN}",
        f"fail 1 nvmlDeviceGetPowerUsage {NOT_SUPPORTED}",
    )
    with running.agent_process("n1", stub.env, tmp_path):
        async with running.swarm.mirror(samples=True) as early:
            start = await seen(early, lambda: early.sampled_at.get(FIRST, 0.0), bool)
            await seen(early, lambda: early.sampled_at[FIRST], lambda at: at > start + 2)
            async with running.swarm.mirror(samples=True) as late:
                await seen(late, lambda: late.sampled_at.get(FIRST, 0.0), bool)
                second = FIRST[:-1] + "1"
                assert late.reasons[FIRST]["fan_percent"] == "Unknown Error"
                assert late.reasons[second]["power_mw"] == "not supported"
                assert {d: dict(r) for d, r in late.reasons.items()} == {d: dict(r) for d, r in early.reasons.items()}


async def test_a_recording_that_starts_late_knows_why_values_are_missing(running: Cluster, tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 1", f"fail 0 nvmlDeviceGetFanSpeed {UNKNOWN}")
    with running.agent_process("n1", stub.env, tmp_path):
        async with running.swarm.mirror(samples=True) as mirror:
            start = await seen(mirror, lambda: mirror.sampled_at.get(FIRST, 0.0), bool)
            await seen(mirror, lambda: mirror.sampled_at[FIRST], lambda at: at > start + 1)
            await running.swarm.profiler.start(name="late", interval=0.2)
            await seen(mirror, lambda: mirror.rows(Session).get("late", Session()).ticks, lambda ticks: ticks >= 5)
            stopped = await running.swarm.wait(session_sealed, await running.swarm.profiler.stop("late"), timeout=60)
    with Recording.open(Path(stopped.path)) as recording:
        async with recording.mirror() as past:
            assert past.reasons[FIRST]["fan_percent"] == "Unknown Error"
            assert past.reasons[FIRST]["load_1m"] == "not supported" and past.samples[FIRST]["power_mw"] == 130_000


EXTRA = """
    import json, sys
    from gswarm.errors import GswarmError
    from gswarm.profiler.devices import discover
    try:
        machine = discover("n1", "", sys.argv[1:])
    except GswarmError as error:
        print(json.dumps(dict(refused=error.what, next=error.next)))
    else:
        reading = machine.devices[0].read()
        print(json.dumps(dict(types=[m.type.value for m in machine.metrics[-len(sys.argv) + 1:]],
                              values=[getattr(reading.get(n), "reason", reading.get(n)) for n in sys.argv[1:]])))
"""


def extra(stub: Stub, *names: str) -> dict[str, Any]:
    """What comes of `--extra-metrics` with these names."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXTRA), *names],
        env={**os.environ, **stub.env}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_any_other_number_of_nvitop_can_be_sampled_by_name(tmp_path: Path) -> None:
    stub = Stub(tmp_path, "devices 1")
    assert extra(stub, "memory_percent", "max_mig_device_count") == {
        "types": ["f32", "u64"], "values": [7.5, 7]
    }  # fmt: skip
    refused = extra(stub, "memory_precent")
    assert "memory_precent" in refused["refused"] and "memory_percent" in refused["next"]
    assert "no number" in extra(stub, "uuid")["refused"]
    assert "anyway" in extra(stub, "power_mw")["refused"]
    # Nothing is called that is not a plain reading.
    assert "no property" in extra(stub, "from_cuda_visible_devices")["refused"]


def test_an_extra_metric_is_no_reason_to_fail_where_there_is_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")  # shadows a real driver
    code = """
        from gswarm.profiler.devices import discover
        machine = discover("n1", "", ["memory_percent"])
        print([device.id[:4] for device in machine.devices], machine.metrics[-1].name)
    """
    done = child(code, {"LD_LIBRARY_PATH": str(tmp_path)})
    assert (done.stdout, done.returncode) == ("['CPU-'] memory_percent\n", 0), done.stderr


async def test_extra_metrics_reach_the_host(running: Cluster, tmp_path: Path) -> None:
    env = {**Stub(tmp_path, "devices 1").env, "GSWARM_CLIENT_EXTRA_METRICS": "memory_percent"}
    async with running.swarm.mirror(samples=True) as mirror:
        with running.agent_process("n1", env, tmp_path):
            values = await seen(mirror, lambda: mirror.samples.get(FIRST, {}), lambda v: "memory_percent" in v)
            assert values["memory_percent"] == 7.5 and BY_NAME.get("memory_percent") is None
