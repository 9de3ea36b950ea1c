"""Settings: layers in order, origins told, unknown keys refused with the near name."""

from __future__ import annotations

from pathlib import Path

import pytest

from gswarm import config
from gswarm.errors import InvalidError


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(__import__("os").environ):
        if name.startswith("GSWARM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "user/gswarm").mkdir(parents=True)
    return tmp_path


def test_each_layer_overrides_the_one_below(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load().host.port == 8090
    (clean / "user/gswarm/config.yaml").write_text("host:\n  port: 1\n  http_port: 2\n  model_port: 3\n  bind: '::1'\n")
    (clean / "work/config.yaml").write_text("host:\n  http_port: 22\n  model_port: 33\n  bind: 127.0.0.2\n")
    monkeypatch.setenv("GSWARM_HOST_MODEL_PORT", "333")
    monkeypatch.setenv("GSWARM_HOST_BIND", "127.0.0.3")
    found = config.load({"host.bind": "127.0.0.4", "client.name": None})
    assert (found.host.port, found.host.http_port, found.host.model_port, found.host.bind) == (1, 22, 333, "127.0.0.4")
    assert found.origins["host.port"].endswith("user/gswarm/config.yaml:2")
    assert found.origins["host.http_port"] == "config.yaml:2"
    assert found.origins["host.model_port"] == "GSWARM_HOST_MODEL_PORT"
    assert found.origins["host.bind"] == "flag"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host:\n  prot: 1\n", r"config.yaml:2: unknown key 'host.prot'.*host.port"),
        ("hots:\n  port: 1\n", r"config.yaml:1: unknown section 'hots'.*host"),
        ("host:\n  port: many\n", r"config.yaml:2: host.port is 'many'"),
        ("host: [1]\n", "expected keys"),
        ("host:\n  port: 70000\n", "65535"),
        ("a: b: c\n", "this is not YAML"),
        ("queue:\n  wait_bound_s: 0\n", "above 0"),
    ],
)
def test_a_bad_file_names_the_place(clean: Path, text: str, message: str) -> None:
    (clean / "work/config.yaml").write_text(text)
    with pytest.raises(InvalidError, match=message):
        config.load()


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_HOST_PROT", "1")
    with pytest.raises(InvalidError, match="GSWARM_HOST_PORT"):
        config.load()


def test_the_example_names_every_key_with_its_default() -> None:
    import yaml

    example = yaml.safe_load((Path(__file__).parent.parent / "config.yaml.example").read_text())
    assert example.pop("alerts") == []
    told = {f"{section}.{key}": value for section, body in example.items() for key, value in body.items()}
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in config.as_dict(config.Config()).items()}
    assert told == defaults


def test_the_schema_takes_the_example_and_refuses_what_the_loader_refuses() -> None:
    import json

    import jsonschema
    import yaml

    root = Path(__file__).parent.parent
    schema = json.loads((root / "docs/schemas/settings.schema.json").read_text())
    text = (root / "config.yaml.example").read_text()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(text), schema)
    told = text.partition("For example:\n")[2].replace("#", "")
    rules = yaml.load(told.replace("alerts: []", ""), yaml.BaseLoader)
    assert [rule["name"] for rule in rules] == ["hot", "node-stale"]
    mistakes: tuple[object, ...] = ({"hots": {}}, {"host": {"prot": 1}}, {"alerts": [{"name": "a", "abvoe": 1}]})
    for wrong in mistakes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
