"""Settings: flags > GSWARM_* > ./config.yaml > the user's config directory > defaults, each value with its origin."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from gswarm.errors import InvalidError
from gswarm.names import near

if TYPE_CHECKING:
    from gswarm.alert.rules import Rule


@dataclass(frozen=True, slots=True)
class HostConfig:
    """The host."""

    bind: str = "127.0.0.1"
    """Address to listen on; beyond loopback TLS is on unless `insecure`."""
    port: int = 8090
    """gRPC: control plane and streams."""
    http_port: int = 8091
    """REST, OpenAPI page, /metrics, /healthz."""
    model_port: int = 9010
    """The OpenAI-compatible gateway."""
    address: str = ""
    """HOST:PORT that commands talk to; empty: the host that runs on this machine."""
    insecure: bool = False
    """Allow a bind beyond loopback without TLS. Tokens then travel in the clear."""
    queue_limit: int = 100_000
    """Unfinished tasks at most; more are refused."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """The agent."""

    name: str = ""
    """Node name; empty: the machine's host name."""
    bind: str = "127.0.0.1"
    """Address of the peer port, reached by other nodes and the gateway."""
    peer_port: int = 0
    """0: any free port."""
    simulate: str = ""
    """Devices to add that exist only as numbers, for example "8xH100" or "2xA100+1xH200"."""
    file_roots: tuple[str, ...] = ()
    """Directories that file:// sources may be read from when host or agent is beyond loopback."""
    extra_metrics: tuple[str, ...] = ()
    """Properties of nvitop's Device to sample as well, for example "memory_percent"."""


@dataclass(frozen=True, slots=True)
class BackendsConfig:
    """Interpreters that have a backend installed; empty: the one made by `gswarm client backend install`."""

    transformers_python: str = ""
    vllm_python: str = ""
    directory: str = ""
    """Where `gswarm client backend install` makes them; empty: below the state directory."""


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """The queue's planner."""

    strategy: str = "online"
    """Which strategy orders tasks."""
    wait_bound_s: float = 60.0
    """No ready task is passed over for longer than this, seconds."""


@dataclass(frozen=True, slots=True)
class ProfilerConfig:
    """How long sealed recordings are kept; one that records is never deleted."""

    keep_days: float = 0.0
    """Days after which a recording goes; 0: never."""
    keep_gb: float = 0.0
    """GiB that recordings may take; the oldest go first. 0: no limit."""


@dataclass(frozen=True, slots=True)
class ConsoleConfig:
    """gswarm-tui."""

    theme: str = "dark"
    """dark, light, contrast, ansi."""
    ascii: bool = False
    """Draw with ASCII only."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Pages of the HTTP port."""

    dcgm_names: bool = False
    """/metrics also under dcgm-exporter's names, for dashboards that were made for it."""


@dataclass(frozen=True, slots=True)
class AlertingConfig:
    """Who is told of alerts. The rules themselves are the list `alerts`."""

    defaults: bool = True
    """The default rules: xid, ecc-uncorrected, device-lost, node-unreachable, node-stale."""
    webhook: str = ""
    """URL that each alert is posted to as JSON; empty: none."""
    headers_file: str = ""
    """File with the webhook's headers, "Name: value" a line, readable by its owner only; else GSWARM_ALERT_HEADERS."""
    command: tuple[str, ...] = ()
    """Program and arguments that get each alert as JSON on standard input; no shell."""
    timeout_s: float = 10.0
    """How long one delivery may take, seconds."""
    attempts: int = 8
    """Deliveries tried before an alert is given up, with growing pauses between."""


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. `origins` says where each dotted key's value came from."""

    host: HostConfig = field(default_factory=HostConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    backends: BackendsConfig = field(default_factory=BackendsConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)
    console: ConsoleConfig = field(default_factory=ConsoleConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    alerting: AlertingConfig = field(default_factory=AlertingConfig)
    alerts: tuple[Rule, ...] = ()
    """Rules of config.yaml; a later file's list replaces an earlier one's."""
    origins: Mapping[str, str] = field(default_factory=dict)


SECTIONS: tuple[tuple[str, type], ...] = (
    ("host", HostConfig),
    ("client", ClientConfig),
    ("backends", BackendsConfig),
    ("queue", QueueConfig),
    ("profiler", ProfilerConfig),
    ("console", ConsoleConfig),
    ("http", HttpConfig),
    ("alerting", AlertingConfig),
)
RULES = "alerts"
"""The one section that is a list."""
# Read elsewhere, so never an unknown key.
_OTHER_VARIABLES = frozenset(
    {
        "HOST",
        "TOKEN",
        "STATE_DIR",
        "SHM_DIR",
        "BACKENDS_DIR",
        "DIFF",
        "SERVICE",
        "AGENT_DIR",
        "SIMULATED_SPEED",
        "TOKEN_FILE",
        "CONFIG",
        "ALERT_HEADERS",
    }
)


def keys() -> dict[str, type]:
    """Every dotted key and its type."""
    found: dict[str, type] = {}
    for section, cls in SECTIONS:
        hints = get_type_hints(cls)
        for item in fields(cls):
            found[f"{section}.{item.name}"] = hints[item.name]
    return found


def user_directory() -> Path:
    """The user's config directory."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "gswarm"


def state_dir() -> Path:
    """Where this machine's state lives: GSWARM_STATE_DIR or the platform's directory, one below it per machine name."""
    if given := os.environ.get("GSWARM_STATE_DIR"):
        base = Path(given).expanduser()
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "gswarm"
    return base / machine_name()


def machine_name() -> str:
    """This machine's short name, safe as a node name and a directory."""
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname().partition(".")[0])
    return name.strip("-_") or "node"


def load(flags: Mapping[str, object] | None = None) -> Config:
    """Read all layers. `flags` maps dotted keys to what the command line gave; None values are not given.

    Raises InvalidError naming file, line and key, with the near name for an unknown one.
    """
    known = keys()
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    given = os.environ.get("GSWARM_CONFIG")
    files = (user_directory() / "config.yaml", Path(given) if given else Path("config.yaml"))
    for path in files:
        if path.is_file():
            for key, (value, line) in _read(path, known).items():
                values[key], origins[key] = value, f"{path}:{line}"
    for key, value, name in _environment(known):
        values[key], origins[key] = value, name
    for key, flag in (flags or {}).items():
        if flag is not None:
            values[key], origins[key] = _typed(flag, known[key], "--" + key.partition(".")[2].replace("_", "-")), "flag"
    sections: dict[str, Any] = {}
    for section, cls in SECTIONS:
        chosen = {k.partition(".")[2]: v for k, v in values.items() if k.startswith(f"{section}.")}
        sections[section] = cls(**chosen)
    _check_ranges(sections)
    rules: Any = values.get(RULES, ())
    return Config(**sections, alerts=rules, origins=origins)


def _check_ranges(sections: Mapping[str, Any]) -> None:
    for section, names in (("host", ("port", "http_port", "model_port")), ("client", ("peer_port",))):
        for name in names:
            if not 0 <= getattr(sections[section], name) <= 65535:
                raise InvalidError(
                    f"{section}.{name} is {getattr(sections[section], name)}",
                    next="ports go from 0 to 65535",
                    field=f"{section}.{name}",
                )
    if sections["queue"].wait_bound_s <= 0:
        raise InvalidError("queue.wait_bound_s must be above 0", field="queue.wait_bound_s")
    alerting = sections["alerting"]
    if not 0 < alerting.timeout_s <= 300 or not 1 <= alerting.attempts <= 100:
        raise InvalidError(
            f"alerting.timeout_s is {alerting.timeout_s:g} and alerting.attempts {alerting.attempts}",
            next="above 0 to 300 s, and 1 to 100",
            field="alerting.timeout_s",
        )
    for name in ("keep_days", "keep_gb"):
        if not 0 <= getattr(sections["profiler"], name) < 1e6:
            raise InvalidError(f"profiler.{name} must be 0 or above", field=f"profiler.{name}")


def _environment(known: Mapping[str, type]) -> list[tuple[str, object, str]]:
    names = {f"GSWARM_{key.replace('.', '_').upper()}": key for key in known}
    found = []
    for name, text in os.environ.items():
        if not name.startswith("GSWARM_") or name.removeprefix("GSWARM_") in _OTHER_VARIABLES:
            continue
        if name not in names:
            raise InvalidError(f"the environment variable {name} is no setting", next=near(name, names), field=name)
        found.append((names[name], _typed(text, known[names[name]], name), name))
    return found


def _read(path: Path, known: Mapping[str, type]) -> dict[str, tuple[object, int]]:
    import yaml

    try:
        root = yaml.compose(path.read_text(), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidError(f"{path}:{line}: this is not YAML", why=error.problem or "") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InvalidError(f"{path} cannot be read", why=str(error).replace("\n", " ")) from None
    found: dict[str, tuple[object, int]] = {}
    for section_node, body in _pairs(root, path):
        section, line = section_node.value, section_node.start_mark.line + 1
        if section == RULES:
            from gswarm.alert.rules import parse

            found[RULES] = (parse(body, path), line)
            continue
        if section not in {name for name, _ in SECTIONS}:
            raise InvalidError(
                f"{path}:{line}: unknown section {section!r}",
                next=near(section, (RULES, *(n for n, _ in SECTIONS))),
                field=section,
            )
        for key_node, value_node in _pairs(body, path):
            key, line = f"{section}.{key_node.value}", key_node.start_mark.line + 1
            if key not in known:
                raise InvalidError(f"{path}:{line}: unknown key {key!r}", next=near(key, known), field=key)
            value = yaml.SafeLoader("").construct_object(value_node, deep=True)
            found[key] = (_typed(value, known[key], f"{path}:{line}: {key}"), line)
    return found


def _pairs(node: Any, path: Path) -> list[tuple[Any, Any]]:
    if node is None or (node.tag.endswith(":null")):
        return []
    if not hasattr(node, "value") or not isinstance(node.value, list) or node.id != "mapping":
        raise InvalidError(f"{path}:{node.start_mark.line + 1}: expected keys and values")
    return list(node.value)


def _typed(value: object, kind: Any, where: str) -> object:
    """`value` as `kind`; text from the environment is parsed. Raises InvalidError naming `where`."""
    if kind == tuple[str, ...]:
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            return tuple(value)
    elif kind is bool:
        words = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
    elif kind in (int, float) and not isinstance(value, bool) and isinstance(value, int | float | str):
        try:
            return kind(value)
        except ValueError:
            pass
    elif kind is str and isinstance(value, str | int):
        return str(value)
    raise InvalidError(
        f"{where} is {value!r}", why=f"{_KIND_WORDS.get(kind, 'a list of text')} is expected", field=where
    )


_KIND_WORDS: Mapping[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def as_dict(config: Config) -> dict[str, object]:
    """Dotted keys and values, for showing."""
    return {
        f"{section}.{item.name}": getattr(getattr(config, section), item.name)
        for section, cls in SECTIONS
        for item in fields(cls)
        if is_dataclass(cls)
    }
