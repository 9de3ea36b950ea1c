"""Generate gswarm/v1 from the protos; --check compares, --baseline records the contract that must not break."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
BASELINE = PROTO / "baseline.binpb"


def _protoc(*arguments: str) -> None:
    include = str(files("grpc_tools") / "_proto")
    sources = sorted(str(path) for path in PROTO.rglob("*.proto"))
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{include}", *arguments, *sources]):
        sys.exit(1)


def generate(out: Path) -> None:
    """Write modules and stubs below `out`."""
    # grpc_tools finds plugins on PATH; ours live beside this interpreter.
    plugins = [
        f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}"
        for name in ("mypy", "mypy_grpc")
    ]
    _protoc(
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *plugins,
    )


def check() -> list[str]:
    """Names of generated files that differ from the committed ones."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        generate(out)
        fresh = {p.name for p in (out / "gswarm/v1").iterdir()}
        committed = {p.name for p in (ROOT / "gswarm/v1").iterdir() if "_pb2" in p.name}
        same, _, _ = filecmp.cmpfiles(out / "gswarm/v1", ROOT / "gswarm/v1", sorted(fresh & committed), shallow=False)
    return sorted((fresh | committed) - set(same))


def main() -> None:
    """Entry point of `make proto` and `make lint`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when the committed modules differ")
    parser.add_argument("--baseline", action="store_true", help="record the descriptors as released")
    options = parser.parse_args()
    if options.baseline:
        _protoc(f"--descriptor_set_out={BASELINE}")
    elif options.check:
        if drifted := check():
            sys.exit(f"gswarm/v1 is not what proto/ says: {', '.join(drifted)}. Run: make proto")
    else:
        generate(ROOT)


if __name__ == "__main__":
    main()
