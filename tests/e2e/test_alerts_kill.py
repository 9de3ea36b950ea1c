"""Alerts with real processes: config.yaml, a command that is told, a host killed again and again while rules turn."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.support.killing import Running
from tests.support.processes import eventually, installation

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
TELL = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"


def test_a_host_killed_again_and_again_fires_each_alert_once(tmp_path: Path) -> None:
    told = tmp_path / "told"
    rules = f"""
alerts:
  - {{name: warm, metric: temperature_c, above: 1, clear: 0, severity: error, on: {{model: "*H100*"}}}}
  - {{name: never, metric: temperature_c, above: 1000}}
alerting:
  command: {json.dumps([sys.executable, "-c", TELL, str(told)])}
"""
    with installation(tmp_path) as installed:
        (tmp_path / "config.yaml").write_text(rules)
        running = Running(installed)
        host = running.host()
        eventually(lambda: list(installed.state.glob("*/host.json")), bool)
        running.agent()
        expected = ["SIM-n1-0", "SIM-n1-1"]

        def firing() -> list[str] | None:
            done = installed.result("alert", "list", "--output", "json", "--sort", "subject")
            return [row["subject"] for row in json.loads(done.stdout)] if done.returncode == 0 else None

        def ticks() -> int:
            """Sample ticks that this host has taken."""
            address = f"http://127.0.0.1:{installed.http_port}/metrics"
            with urlopen(Request(address, headers={"Authorization": f"Bearer {running.token()}"})) as answer:
                return int(re.search(rb"ticks_total (\d+)", answer.read())[1])  # type: ignore[index]

        eventually(firing, lambda found: found == expected)
        for _ in range(3):
            running.kill(host)
            host = running.host()
            eventually(firing, lambda found: found == expected)
            eventually(ticks, lambda count: count >= 2)
        events = installed.rows("event", "list", "--filter", "type~alert.", "--limit", "0")
        assert Counter((e["type"], e["subject"]) for e in events) == {("alert.firing", s): 1 for s in expected}
        eventually(lambda: told.read_text().splitlines() if told.exists() else [], lambda lines: len(lines) >= 2)
        bodies = [json.loads(line) for line in told.read_text().splitlines()]
        # At least once: a host killed between the delivery and its note of it tells again.
        assert {(body["status"], body["subject"]) for body in bodies} == {("firing", s) for s in expected}
        (tmp_path / "config.yaml").write_text(rules.replace("above: 1, clear: 0", "above: 90"))
        running.kill(host)
        running.host()
        eventually(firing, lambda found: found == [])
        table = installed.run("event", "list", "--filter", "type=alert.resolved")
        assert table.count("n1:gpu") == 2 and "warm is over: temperature_c 31" in table


def test_a_config_that_cannot_be_is_one_clear_line_and_nothing_starts(tmp_path: Path) -> None:
    with installation(tmp_path) as installed:
        (tmp_path / "config.yaml").write_text("alerts:\n  - name: hot\n    metric: temprature_c\n    above: 85\n")
        done = installed.result("host", "start")
        assert done.returncode == 2 and "config.yaml:3" in done.stderr and "temperature_c" in done.stderr
        assert "Traceback" not in done.stderr and not list(installed.state.glob("*/host.db"))
        # Commands that only look are not kept from it.
        assert "hot" not in installed.run("config", "show")


def test_a_host_that_up_starts_has_the_rules_of_this_directory(tmp_path: Path) -> None:
    with installation(tmp_path) as installed:
        (tmp_path / "config.yaml").write_text("alerts:\n  - {name: warm, metric: temperature_c, above: 1}\n")
        installed.run("up", "--simulate", "1xH100")
        eventually(lambda: [row["rule"] for row in installed.rows("alert", "list")], lambda rules: rules == ["warm"])
        installed.run("down")
