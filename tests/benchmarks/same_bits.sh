#!/usr/bin/env bash
# Prints hashes of the losses and weights of short runs, and of a run that was stopped and resumed: to be compared before
# and after a change that must change nothing, on one machine.
#
#   tests/benchmarks/same_bits.sh CHECKOUT OUT PYTHON
#
# A line: name, steps, losses, model.safetensors, optimizer.safetensors, encoder.
set -euo pipefail
cd "$1"
out=$2 python=$3
mkdir -p "$out"
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 VDE_CACHE=$out/cache
small=(--run.steps=6 --run.checkpoint_every=3 --clips.balance=0 --views.local_views=2 --objective.head.prototypes=64)

train() { "$python" -m training.pretrain --data examples/dog.mp4 "$@" "${small[@]}" >/dev/null 2>>"$out/stderr"; }

say() {
    "$python" - "$1" "$2" <<'PYTHON'
import hashlib
import json
import sys
from pathlib import Path

name, run = sys.argv[1], Path(sys.argv[2])
rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
losses = " ".join(float(row["loss"]).hex() for row in rows).encode()
newest = sorted((run / "checkpoints").iterdir())[-1]
files = [newest / "model.safetensors", newest / "optimizer.safetensors", run / "encoder" / "model.safetensors"]
digests = [hashlib.sha256(content).hexdigest()[:16] for content in (losses, *(file.read_bytes() for file in files))]
print(name, len(rows), "steps", *digests)
PYTHON
}

for method in vfd dino-frames dino-time-aug ibot attmask; do
    layers=(smoke)
    [ "$method" = vfd ] || layers+=("$method")
    rm -rf "${out:?}/$method"
    train --out "$out/$method" --recipe "${layers[@]}"
    say "$method" "$out/$method"
done
rm -rf "$out/again"
cp -r "$out/vfd" "$out/again"
rm -rf "$out/again/checkpoints/step-00000006" "$out/again/encoder"
train --out "$out/again" --recipe smoke --resume
say resumed "$out/again"
