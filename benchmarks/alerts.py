"""What alert rules cost the host: CPU for each node's tick, beside reading the same metrics into Python and comparing.

Every node has devices that sit below all limits, as devices do nearly always; one tick of a node is one look. The plain
way is the one a person would write first: every value of every device as a number, an `if` for each rule. Both see the
same ticks in turns. Prints one JSON line.

    python benchmarks/alerts.py [--nodes 1000] [--devices 8] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

from gswarm.alert.rules import Rule, When
from gswarm.alert.thresholds import Thresholds
from gswarm.profiler.packing import Packer
from gswarm.profiler.simulated import parse
from gswarm.profiler.ticks import table
from gswarm.v1 import profiler_pb2

RULES = (
    Rule("hot", When.ABOVE, "temperature_c", 85, 80, for_s=30),
    Rule("hotter", When.ABOVE, "temperature_c", 95, 90),
    Rule("power", When.ABOVE, "power_mw", 690_000, 650_000, for_s=60),
    Rule("full", When.ABOVE, "memory_used_bytes", 79 * 2**30, 78 * 2**30),
    Rule("energy", When.ABOVE, "energy_mj", 2**60, 2**59),
)


def ticks(nodes: int, devices: int) -> list[tuple[profiler_pb2.MetricSchema, profiler_pb2.SampleTick]]:
    """One tick a node, made by the code that agents use."""
    found = []
    for number in range(nodes):
        name = f"n{number}"
        simulated = parse(name, f"{devices}xH100", first_index=0)
        packer = Packer(name, [device.id for device in simulated])
        readings = [device.read() for device in simulated]
        packer.admit(readings)
        tick = packer.pack(readings, seq=1, time_unix_us=1)
        tick.node = name
        found.append((packer.schema, tick))
    return found


def plain(schema: profiler_pb2.MetricSchema, tick: profiler_pb2.SampleTick) -> int:
    """How many rules would fire, read from a table of what each device gives."""
    firing = 0
    for given in table(schema, tick):
        for rule in RULES:
            if (value := given.get(rule.metric)) is not None and value > rule.limit:
                firing += 1
    return firing


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Both ways, in turns."""
    every = ticks(options.nodes, options.devices)
    schemas = {schema.node: schema for schema, _ in every}
    thresholds = Thresholds(RULES, lambda device: None, lambda node, schema_id: schemas[node])
    for schema, tick in every:
        assert not thresholds.look(tick) and not plain(schema, tick)
    ours: list[float] = []
    theirs: list[float] = []
    for second in range(options.rounds):
        begin = time.process_time()
        for _, tick in every:
            tick.time_unix_us = (second + 2) * 1_000_000
            thresholds.look(tick)
        middle = time.process_time()
        for schema, tick in every:
            plain(schema, tick)
        ours.append(middle - begin)
        theirs.append(time.process_time() - middle)
    return {
        "benchmark": "alerts",
        "nodes": options.nodes,
        "devices": options.devices,
        "rules": len(RULES),
        "us_per_tick": round(statistics.median(ours) / options.nodes * 1e6, 1),
        "plain_us_per_tick": round(statistics.median(theirs) / options.nodes * 1e6, 1),
        "core_percent_at_1_hz": round(statistics.median(ours) * 100, 2),
        "to_plain": round(statistics.median(o / t for o, t in zip(ours, theirs, strict=True)), 3),
        "limit": 0.2,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
