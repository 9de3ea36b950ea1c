#!/usr/bin/env bash
# Serve a model and ask it: tests/serve_and_test.sh [model] [device] [port]
#
# Uses the host that runs, or brings one up for as long as this takes. `smollm2`, the default, is made and stored when
# it is missing; any other model must be in the registry (gswarm model list). Exits 0 when the model answers.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in -h | --help) sed -n '2,5s/^# \{0,1\}//p' "tests/$(basename "$0")"; exit 0 ;; esac
model=${1:-smollm2} device=${2:-cpu} port=${3:-9100}
export PATH="$PWD/.venv/bin:$PATH"
command -v gswarm >/dev/null || { echo "gswarm is not installed: run make run once, or pip install -e ." >&2; exit 1; }

field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

started=false served=false name="serve-and-test-$$"
cleanup() {
  if $served; then gswarm model stop "$name" --yes >/dev/null 2>&1 || true; fi
  gswarm token revoke "$name" --yes >/dev/null 2>&1 || true
  if $started; then gswarm down >/dev/null; fi
}
trap cleanup EXIT

if ! gswarm status >/dev/null 2>&1; then
  gswarm up --no-console >/dev/null
  started=true
fi
if [[ $model == smollm2 ]] && ! gswarm model info smollm2 >/dev/null 2>&1; then
  make smollm2 >&2
  gswarm model download smollm2 --source "file://$PWD/.cache/smollm2" >/dev/null
fi

served=true
gswarm model serve "$model" --device "$device" --port "$port" --service "$name" >/dev/null
URL=http://127.0.0.1:$(gswarm status --output json | field model_port)/v1/chat/completions
KEY=$(gswarm token create "$name" infer --output json | field token)
MODEL=$name URL=$URL KEY=$KEY python3 - <<'PYTHON'
import json, os, sys, urllib.request

body = {
    "model": os.environ["MODEL"],
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 24,
    "temperature": 0,
}
headers = {"Authorization": f"Bearer {os.environ['KEY']}", "Content-Type": "application/json"}
request = urllib.request.Request(os.environ["URL"], json.dumps(body).encode(), headers)
with urllib.request.urlopen(request, timeout=300) as reply:
    answer = json.load(reply)["choices"][0]["message"]["content"].strip()
print(answer)
sys.exit(not answer)
PYTHON
