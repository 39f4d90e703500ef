#!/usr/bin/env bash
# Starts a training run of a given length on a machine without a network, and leaves it running.
#
#   examples/rented_gpu/train.sh PARCEL OUT HH:MM:SS [--recipe NAME…] [--SECTION.SETTING VALUE…]
#
# OUT.log receives what the run prints. The time counts from here, installing what was carried included.
set -euo pipefail
begin=$SECONDS
parcel=$(realpath "$1") out=$(realpath -m "$2") length=$3
shift 3
site=$parcel/site
[ -d "$site" ] || python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$parcel"/wheels/*.whl
code=$(realpath "$(dirname "$0")/../..")
[ $# -gt 0 ] && [ "$1" = --recipe ] || set -- --recipe release "$@"
mkdir -p "$(dirname "$out")"
IFS=: read -r hours minutes seconds <<<"$length"
left=$((10#$hours * 3600 + 10#$minutes * 60 + 10#$seconds - (SECONDS - begin)))
length=$(printf '%02d:%02d:%02d' $((left / 3600)) $((left / 60 % 60)) $((left % 60)))
PYTHONPATH=$site:$code PYTHONSAFEPATH=1 setsid python3 -m training.pretrain --data "$parcel/video" --frames "$parcel/frames" \
    --out "$out" --max-time "$length" "$@" >>"$out.log" 2>&1 </dev/null &
echo "process $!, $length, $out.log"
