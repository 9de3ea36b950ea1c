#!/usr/bin/env bash
# What docs/slow-run.md tells, from an empty directory to its pictures: on two simulated GPUs, in four and a half minutes.
# Run it from a clone that `make run` or `make test` has set up. docs/slow-run.sh DIRECTORY keeps everything there;
# without a directory it draws the page's pictures anew.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kept=${1:-}
work=${kept:-$(mktemp -d)}
mkdir -p "$work" && cd "$work" && work=$PWD
export PATH="$here/../.venv/bin:$PATH" NO_COLOR=1
# A swarm of its own, beside the one that may run on this machine.
export GSWARM_STATE_DIR="$work/state" GSWARM_SHM_DIR="$work/shm" XDG_CONFIG_HOME="$work/config"
export GSWARM_HOST_PORT=18290 GSWARM_HOST_HTTP_PORT=18291 GSWARM_HOST_MODEL_PORT=18292
mkdir -p "$GSWARM_SHM_DIR"
quiet() { "$@" >/dev/null 2>&1; }
say() { printf '\n$ %s\n' "$*"; "$@"; }

# One question a model every three seconds, for a minute and a half, recorded under a name.
record() {
  gswarm profiler start --name "$1" --interval 0.25 >/dev/null
  for round in $(seq 1 30); do
    {
      printf 'name: round %d\nactions:\n' "$round"
      for model in chat code translate; do
        printf '  - {id: %s, type: inference, model: %s, prompt: Question %d, max_tokens: 48}\n' "$model" "$model" "$round"
      done
    } > "round.yaml"
    if [ "$round" = 15 ]; then quiet gswarm profiler mark "half way"; fi
    quiet gswarm queue submit round.yaml --no-wait
    sleep 3
  done
  sleep 5
  quiet gswarm profiler stop "$1"
}

quiet gswarm up --simulate 2xH100 --no-console
trap 'quiet gswarm down; [ -n "$kept" ] || rm -rf "$work"' EXIT
for name in chat code translate; do quiet gswarm model download "$name" --source simulated:28GiB; done

record slow
say gswarm profiler analyze slow
say gswarm profiler plot slow --out slow.svg --device gpu0 --device gpu1 --metric gpu_util_percent
say env COLUMNS=80 gswarm profiler plot slow --term --metric gpu_util_percent --device gpu0 --device gpu1
quiet gswarm profiler report slow --out slow.html --force
quiet env -u NO_COLOR gswarm-tui --from slow --screenshot console.svg --size 110x20 --keys right,right,right,right

# The cure: all three loaded for good, two of them on one device.
services() { gswarm model services --output json | python3 -c 'import json, sys; print(*(s["name"] for s in json.load(sys.stdin)))'; }
for name in $(services); do quiet gswarm model stop "$name" --yes; done
quiet gswarm model serve chat --device gpu0
quiet gswarm model serve code --device gpu1
quiet gswarm model serve translate --device gpu0
record cured
say gswarm profiler analyze cured
say gswarm profiler compare slow cured
quiet gswarm profiler plot cured --out cured.svg --device gpu0 --device gpu1 --metric gpu_util_percent

if [ -z "$kept" ]; then
  cp slow.svg "$here/slow-run.svg"
  cp cured.svg "$here/slow-run-cured.svg"
  cp console.svg "$here/slow-run-console.svg"
fi
