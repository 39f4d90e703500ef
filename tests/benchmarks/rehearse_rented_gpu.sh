#!/usr/bin/env bash
# Rehearses examples/rented_gpu on CPUs: two budgeted runs, the second from the handover/ of the first, in a Python that
# has neither PyAV nor jsonargparse, and the encoder put together from the parts.
#
#   tests/benchmarks/rehearse_rented_gpu.sh BARE_PYTHON OUT VIDEO_OR_DIR…
#
# BARE_PYTHON is the python3 of an environment of 3.12 with torch 2.11, torchvision, timm, transformers, huggingface_hub, safetensors, numpy,
# opencv-python-headless, scipy, matplotlib and tensorboard. TIME (00:03:00) is the length of a run.
set -euo pipefail
cd "$(dirname "$0")/../.."
bare=$(realpath -s "$1") out=$(realpath -m "$2") time=${TIME:-00:03:00}
shift 2
if "$bare" -c 'import av' 2>/dev/null || "$bare" -c 'import jsonargparse' 2>/dev/null; then
    echo "$bare has PyAV or jsonargparse: it is not bare" >&2
    exit 1
fi
python examples/rented_gpu/pack.py "$@" --out "$out/parcel/video"
examples/rented_gpu/wheels.sh "$out/parcel" "$("$bare" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
small=(--views.global_size=64 --views.local_size=32 --objective.head.prototypes=512 --run.batch_size=32)

train() {
    local run=$1 begin=$SECONDS said process
    shift
    said=$(PATH="$(dirname "$bare"):$PATH" examples/rented_gpu/train.sh "$out/parcel" "$run" "$time" "$@" "${small[@]}")
    echo "$said"
    process=$(sed 's/process \([0-9]*\),.*/\1/' <<<"$said")
    while kill -0 "$process" 2>/dev/null; do sleep 0.2; done
    tr '\r' '\n' <"$run.log" | tail -n 3
    echo "$run took $((SECONDS - begin)) s of $time"
    [ -d "$run/encoder" ]
}

train "$out/first" --recipe release tiny --run.workers=1
mkdir -p "$out/carried"
cp "$out"/first/handover/* "$out/carried/"
(cd "$out/carried" && sha256sum --check SHA256SUMS)
train "$out/second" --recipe release tiny --run.workers=1 --init-from "$out/carried"
python -m training.handover "$out/second/handover" --out "$out/encoder"
python - "$out/encoder" "$out/second/handover/handover.json" <<'PYTHON'
import json
import sys
from video_distilled_encoder import Encoder

features = Encoder.from_pretrained(sys.argv[1]).encode("examples/surfer.jpg")
runs = json.load(open(sys.argv[2]))["runs"]
print(f"encoder: patches {tuple(features.patches.shape)}, after {[run['steps'] for run in runs]} steps")
PYTHON
