"""Writes docs/schemas/settings.schema.json, the JSON schema of config.yaml, from the settings' own classes and words."""

from __future__ import annotations

import argparse
import ast
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from gswarm import config
from gswarm.alert.rules import DEFAULTS, HOLD_S, HYSTERESIS, State
from gswarm.cluster.types import Severity
from gswarm.profiler.metrics import METRICS

TARGET = Path(__file__).with_name("schemas") / "settings.schema.json"
TYPES: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": ["string", "integer"]},
    tuple[str, ...]: {"type": "array", "items": {"type": "string"}},
}
PATTERNS = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
DURATION = {"type": ["number", "string"], "pattern": r"^\d+(\.\d+)?(ms|s|m|h)?$", "minimum": 0}


def words() -> dict[tuple[str, str], str]:
    """(class, field) to the sentence below the field in config.py."""
    found: dict[tuple[str, str], str] = {}
    for node in ast.parse(Path(config.__file__).read_text()).body:
        if isinstance(node, ast.ClassDef):
            name = ""
            for part in node.body:
                if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    name = part.target.id
                elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and name:
                    found[node.name, name] = str(part.value.value)
    return found


def section(cls: type, told: dict[tuple[str, str], str]) -> dict[str, Any]:
    """One section."""
    hints = get_type_hints(cls)
    properties = {}
    for item in fields(cls):
        default: Any = item.default
        properties[item.name] = {
            **TYPES[hints[item.name]],
            "description": told.get((cls.__name__, item.name), ""),
            "default": list(default) if isinstance(default, tuple) else default,
        }
    about = (cls.__doc__ or "").strip()
    return {"type": ["object", "null"], "description": about, "properties": properties, "additionalProperties": False}


def rule() -> dict[str, Any]:
    """One item of `alerts`."""
    severities = [one.value for one in Severity if one is not Severity.UNKNOWN]
    return {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "description": f"Default rules: {', '.join(one.name for one in DEFAULTS)}."},
            "metric": {"description": "A metric of every device.", "enum": [metric.name for metric in METRICS]},
            "above": {"type": "number", "description": "Fires above this, in the unit of the metric's name."},
            "below": {"type": "number", "description": "Fires below this."},
            "rises": {"const": True, "description": "Fires whenever the counter rises."},
            "clear": {
                "type": "number",
                "description": f"Over at this value; by default {HYSTERESIS:.0%} of the limit away from it.",
            },
            "event": {"type": "string", "description": "Type of an event, such as device.xid."},
            "state": {"enum": [state.value for state in State]},
            "for": {**DURATION, "description": "How long it must hold before it fires.", "default": 0},
            "hold": {
                **DURATION,
                "description": "How long it fires after the last time, for rises and event.",
                "default": HOLD_S,
            },
            "on": {
                "description": "Which devices or nodes; a bare name or list is of devices. * matches anything.",
                "oneOf": [
                    *PATTERNS["oneOf"],
                    {
                        "type": "object",
                        "properties": {"device": PATTERNS, "node": PATTERNS, "model": PATTERNS},
                        "additionalProperties": False,
                    },
                ],
            },
            "severity": {"enum": severities, "default": Severity.WARNING.value},
            "enabled": {"type": "boolean", "description": "false switches a default rule off.", "default": True},
        },
        "additionalProperties": False,
    }


def schema() -> str:
    """The whole schema, as text."""
    told = words()
    made = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gswarm: config.yaml",
        "type": "object",
        "properties": {
            **{name: section(cls, told) for name, cls in config.SECTIONS},
            "alerts": {"type": ["array", "null"], "description": "Alert rules.", "items": rule()},
        },
        "additionalProperties": False,
    }
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when the file differs")
    options = parser.parse_args()
    if not options.check:
        TARGET.write_text(schema())
    elif not TARGET.exists() or TARGET.read_text() != schema():
        sys.exit(f"{TARGET.name} is not what the settings say. Run: python docs/settings_schema.py")


if __name__ == "__main__":
    main()
