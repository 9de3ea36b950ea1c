"""Ask a served model through the gateway with the official OpenAI client, streaming.

The client finds the gateway in OPENAI_BASE_URL and the token in OPENAI_API_KEY:

    python examples/ask.py smollm2 "What is the capital of France?"
"""

from __future__ import annotations

import argparse
import sys

from openai import OpenAI


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Ask a model; the answer is printed as it comes.")
    parser.add_argument("model")
    parser.add_argument("question")
    options = parser.parse_args()
    stream = OpenAI().chat.completions.create(
        model=options.model,
        messages=[{"role": "user", "content": options.question}],
        max_tokens=64,
        temperature=0,
        stream=True,
    )
    for event in stream:
        for choice in event.choices:
            sys.stdout.write(choice.delta.content or "")
            sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
