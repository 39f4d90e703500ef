#!/usr/bin/env bash
# Runs the tests of the core and of the exports with the oldest versions that pyproject.toml allows, which are claims
# until somebody does.
#
#   tests/floors.sh [PYTHON [TEST…]]
#
# PYTHON (3.10) is a version or a path; further words are handed to pytest in place of the folders below.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-3.10}
shift || true
[ $# -gt 0 ] || set -- tests/video_distilled_encoder tests/export
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment/uv"
"$environment/uv/bin/pip" install -q uv
"$environment/uv/bin/uv" venv -q --python "$python" "$environment/oldest"
# what only checks the code or builds documents may be new
torch=$(sed -n 's/^  "torch>=\(.*\)",$/\1/p' pyproject.toml | sort -V | tail -1)  # which torchvision would raise
"$environment/uv/bin/uv" pip install -q --python "$environment/oldest" --resolution lowest-direct \
    -e '.[evaluation,export,transformers,teachers]' "torch==$torch.*" 'pytest>=8' 'pytest-xdist>=3.6' 'setuptools>=77'
"$environment/uv/bin/uv" pip list --python "$environment/oldest" 2>/dev/null |
    grep -E '^(torch|timm|huggingface-hub|safetensors|numpy|pillow|av|jsonargparse|onnx|onnxscript|onnxruntime-gpu|openvino|transformers|scipy|pycocotools) '
"$environment/oldest/bin/python" -m pytest -n 2 --dist worksteal "$@"
