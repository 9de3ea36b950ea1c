"""What sampling costs: eight GPUs over the stub NVML beside the bare pynvml calls that it stands on; the whole agent at 1 Hz.

A sample is what a tick is made of: 20 metrics of each of 8 GPUs, six of them from GPM, read and packed. The bare calls
are those NVML functions and no more, their results thrown away; both in turns in one process, over a stub that answers
at once. The whole agent is a real process attached to a real host: its CPU seconds over wall seconds, everything that
8 GPUs and the machine give. Prints one JSON line. Needs a C compiler.

    python benchmarks/agent.py [--rounds 7] [--samples 100] [--seconds 20]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GPUS = 8
GPM = (1, 2, 3, 5, 10, 12)
OTHER_GPM = (4, 11, 13, 20, 21, 60, 61)
SAMPLE_GOAL, CORE_GOAL_PERCENT = 1.5, 1.0


def bare() -> Callable[[], None]:
    """The calls behind a sample of all GPUs: 10 functions and two of GPM for each."""
    import pynvml as nvml

    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(GPUS)]
    samples = [[nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()] for _ in handles]
    requests = []
    for handle, pair in zip(handles, samples, strict=True):
        request = nvml.c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, len(GPM)
        for i, number in enumerate(GPM):
            request.metrics[i].metricId = number
        nvml.nvmlGpmSampleGet(handle, pair[0])
        requests.append(request)

    def sample() -> None:
        for handle, pair, request in zip(handles, samples, requests, strict=True):
            nvml.nvmlDeviceGetUtilizationRates(handle)
            nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
            nvml.nvmlDeviceGetPowerUsage(handle)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            nvml.nvmlDeviceGetTemperature(handle, 0)
            nvml.nvmlDeviceGetClockInfo(handle, 1)
            nvml.nvmlDeviceGetClockInfo(handle, 2)
            nvml.nvmlDeviceGetEncoderUtilization(handle)
            nvml.nvmlDeviceGetDecoderUtilization(handle)
            nvml.nvmlDeviceGetPerformanceState(handle)
            nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
            nvml.nvmlGpmSampleGet(handle, pair[1])
            request.sample1, request.sample2 = pair
            nvml.nvmlGpmMetricsGet(request)
            pair.reverse()

    return sample


def ours() -> tuple[Callable[[], None], Callable[[], dict[str, Any]]]:
    """A sample as the agent takes it, packed; and what it held last, by metric, of the first GPU."""
    from gswarm.profiler.metrics import BY_NAME, Cadence
    from gswarm.profiler.nvml import discover
    from gswarm.profiler.packing import Packer
    from gswarm.profiler.ticks import table

    gpus = discover("bench")
    packer = Packer("bench", [gpu.id for gpu in gpus])
    ticks: list[Any] = []

    def sample() -> None:
        readings = [gpu.read() for gpu in gpus]
        packer.admit(readings)
        ticks[:] = [packer.pack(readings, seq=1, time_unix_us=time.time_ns() // 1000)]

    def given() -> dict[str, Any]:
        found = table(packer.schema, ticks[0])[0]
        return {n: v for n, v in found.items() if BY_NAME[n].cadence is Cadence.TICK}

    return sample, given


def compare(rounds: int, samples: int) -> dict[str, Any]:
    """Both in turns, CPU seconds a sample; run in a process that loads the stub."""
    sample, given = ours()
    beside = bare()
    for warm_up in (sample, beside, sample):
        warm_up()
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(rounds):
        turns = (("ours", sample), ("bare", beside))
        for name, call in turns if number % 2 else reversed(turns):
            began = time.process_time()
            for _ in range(samples):
                call()
            times[name].append((time.process_time() - began) / samples)
    return {
        "metrics": len(given()),
        "sample_us": round(1e6 * statistics.median(times["ours"])),
        "bare_us": round(1e6 * statistics.median(times["bare"])),
        "ratios": [round(a / b, 2) for a, b in zip(times["ours"], times["bare"], strict=True)],
    }


async def whole_agent(env: dict[str, str], directory: Path, seconds: float) -> dict[str, Any]:
    """CPU per cent of a core that an attached agent takes, sampling once a second."""
    from tests.support.cluster import cluster, seen

    os.environ["GSWARM_STATE_DIR"] = str(directory)
    async with cluster(directory) as running, running.swarm.mirror(samples=True) as mirror:
        with running.agent_process("bench", env, directory) as agent:
            await seen(mirror, lambda: len(mirror.samples), lambda count: count == GPUS + 1)
            process = psutil.Process(agent.pid)
            await asyncio.sleep(3)  # what it does once at its start is not what it costs
            before, began = process.cpu_times(), time.monotonic()
            ticks = running.context.hub.ticks
            size = len(running.context.hub.history("bench", 0)[0])
            await asyncio.sleep(seconds)
            after, took = process.cpu_times(), time.monotonic() - began
            spent = after.user + after.system - before.user - before.system
            return {
                "agent_cpu_percent": round(100 * spent / took, 2),
                "ticks": running.context.hub.ticks - ticks,
                "tick_bytes": size,
                "values_a_gpu": max(len(values) for values in mirror.samples.values()),
                "agent_rss_mib": round(process.memory_info().rss / 2**20, 1),
            }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(compare(options.rounds, options.samples)))
        return
    from tests.support.nvml import NOT_SUPPORTED, Stub, compiler

    if compiler() is None:
        raise SystemExit("no C compiler to build the stub NVML with")
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        stub = Stub(directory, f"devices {GPUS}", *(f"fail * gpm{n} {NOT_SUPPORTED}" for n in OTHER_GPM))
        command = [sys.executable, __file__, "--child", f"--rounds={options.rounds}", f"--samples={options.samples}"]
        told = subprocess.run(command, env={**os.environ, **stub.env}, stdout=subprocess.PIPE, check=True)
        sampled = json.loads(told.stdout)
        stub.set(f"devices {GPUS}", "nvswitch 18", "moving")
        agent = asyncio.run(whole_agent(stub.env, directory / "state", options.seconds))
    print(
        json.dumps(
            {
                "benchmark": "agent",
                "gpus": GPUS,
                **sampled,
                "sample_to_pynvml": round(statistics.median(sampled["ratios"]), 2),
                "goal": SAMPLE_GOAL,
                **agent,
                "agent_goal_percent": CORE_GOAL_PERCENT,
            }
        )
    )


if __name__ == "__main__":
    main()
