#!/usr/bin/env bash
# What training needs beyond torch, torchvision, timm, transformers and matplotlib, as wheels for Linux on x86-64.
#
#   examples/rented_gpu/wheels.sh PARCEL [PYTHON_VERSION]
set -euo pipefail
parcel=$1 version=${2:-3.12}
platforms=()
for glibc in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
python3 -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
    "${platforms[@]}" -d "$parcel/wheels" av jsonargparse docstring_parser typeshed_client
du -sh "$parcel/wheels"
