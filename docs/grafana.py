"""Writes docs/grafana.json, a Grafana dashboard over gswarm's /metrics; metric names come from the code that serves them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gswarm.host.exposition import exposed

TARGET = Path(__file__).with_name("grafana.json")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
DEVICES = '{node=~"$node",device=~"$device"}'
NODES = '{node=~"$node"}'


def of(metric: str) -> str:
    """A device metric of the chosen devices."""
    return f"{exposed(metric).name}{DEVICES}"


class Board:
    """Panels laid out left to right, 24 columns a row."""

    def __init__(self) -> None:
        self.panels: list[dict[str, Any]] = []
        self._x, self._y, self._height = 0, 0, 0

    def add(
        self, kind: str, title: str, queries: dict[str, str], unit: str, width: int, height: int, **more: Any
    ) -> None:
        """A panel; `queries` maps legends to expressions."""
        if self._x + width > 24:
            self._x, self._y = 0, self._y + self._height
            self._height = 0
        defaults: dict[str, Any] = {"unit": unit, "min": 0} | more
        targets = [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for i, (legend, expression) in enumerate(queries.items())
        ]
        panel: dict[str, Any] = {
            "id": len(self.panels) + 1,
            "type": kind,
            "title": title,
            "datasource": SOURCE,
            "gridPos": {"x": self._x, "y": self._y, "w": width, "h": height},
            "fieldConfig": {"defaults": defaults, "overrides": []},
            "targets": targets,
        }
        if kind == "timeseries":
            panel["options"] = {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"displayMode": "list"}}
        self.panels.append(panel)
        self._x, self._height = self._x + width, max(self._height, height)


def variable(name: str, query: str) -> dict[str, Any]:
    """A variable with the values of a label."""
    return {
        "name": name, "label": name, "type": "query", "datasource": SOURCE, "refresh": 2, "sort": 7,
        "query": {"query": query, "refId": name}, "definition": query,
        "includeAll": True, "multi": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The whole board."""
    board, each = Board(), "{{device}}"
    util, power = of("gpu_util_percent"), of("power_mw")
    used, size = of("memory_used_bytes"), of("memory_total_bytes")
    board.add("stat", "Nodes ready", {"ready": 'gswarm_nodes{phase="ready"}'}, "short", 4, 4)
    board.add("stat", "Devices that answer", {"devices": f"sum(gswarm_device_up{DEVICES})"}, "short", 4, 4)
    board.add("stat", "Utilisation", {"mean": f"avg({util})"}, "percentunit", 4, 4, max=1)
    board.add("stat", "Power", {"sum": f"sum({power})"}, "watt", 4, 4)
    board.add("stat", "Tasks waiting", {"ready": 'sum(gswarm_tasks{phase=~"ready|backoff"})'}, "short", 4, 4)
    board.add("stat", "Alerts", {"alerts": "sum(gswarm_alerts)"}, "short", 4, 4)
    board.add("timeseries", "Utilisation", {each: util}, "percentunit", 12, 8, max=1)
    board.add("timeseries", "Memory used", {each: f"{used} / {size}"}, "percentunit", 12, 8, max=1)
    board.add("timeseries", "Power", {each: power}, "watt", 12, 8)
    board.add("timeseries", "Temperature", {each: of("temperature_c")}, "celsius", 12, 8)
    board.add("timeseries", "SM clock", {each: of("sm_clock_mhz")}, "hertz", 12, 8)
    energy = f"sum by (node) (rate({of('energy_mj')}[$__rate_interval]))"
    board.add("timeseries", "Power by node, from energy", {"{{node}}": energy}, "watt", 12, 8)
    board.add("timeseries", "Tasks by phase", {"{{phase}}": "gswarm_tasks"}, "short", 12, 8)
    rate = f"gswarm_service_tokens_per_second{NODES}"
    board.add("timeseries", "Tokens per second", {"{{service}} on {{node}}": rate}, "short", 12, 8)
    age = f"gswarm_sample_age_seconds{NODES}"
    board.add("timeseries", "Age of the newest sample", {"{{node}}": age}, "s", 12, 8)
    alerts = {"{{rule}}: {{subject}}": f"gswarm_alert_firing{NODES}"}
    board.add("timeseries", "Alerts that fire", alerts, "short", 12, 8, max=1)
    picker = {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"}
    return {
        "title": "gswarm",
        "uid": "gswarm",
        "description": "GPUs, queue, services and alerts of one gswarm host.",
        "tags": ["gswarm", "gpu"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                picker,
                variable("node", "label_values(gswarm_device_up, node)"),
                variable("device", 'label_values(gswarm_device_up{node=~"$node"}, device)'),
            ]
        },
        "panels": board.panels,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when the file differs")
    options = parser.parse_args()
    text = json.dumps(dashboard(), indent=2) + "\n"
    if not options.check:
        TARGET.write_text(text)
    elif not TARGET.exists() or TARGET.read_text() != text:
        sys.exit("docs/grafana.json is not what the code says. Run: python docs/grafana.py")


if __name__ == "__main__":
    main()
