#!/usr/bin/env bash
# Proves the LeRobot policies on the real LeRobot 0.6.1, in an environment of its own (Python 3.12 or newer, about 6 GB):
#   tests/stacks/lerobot.sh [ENVIRONMENT [PYTHON]]
# The environment is kept, and used again when it is there.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
environment=${1:-/tmp/vde-lerobot}
if [ ! -x "$environment/bin/lerobot-train" ]; then
  "${2:-python3.12}" -m venv "$environment"
  "$environment/bin/pip" install -q 'lerobot[training,diffusion]==0.6.1' 'transformers>=5.4,<5.6' pytest
fi
"$environment/bin/pip" install -q "$root"
"$environment/bin/pip" install -q --force-reinstall --no-deps "$root" "$root/examples/robot/lerobot_policy_vde"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PATH="$environment/bin:$PATH" HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" WANDB_MODE=disabled
cd "$work"
python "$root/tests/stacks/record_lerobot.py" --check 2> log || { tail -20 log; exit 1; }
PYTHONPATH="$root/tests/stacks" python -m pytest -q --noconftest -c /dev/null -p no:cacheprovider "$root"/tests/stacks/test_*.py
python "$root/tests/stacks/real_lerobot.py" "$work/proof" 2> log || { tail -20 log; exit 1; }
