#!/usr/bin/env bash
# The main job on a fresh machine: a teacher, then a student from labels only, from the teacher's hard labels, by KD and by DKD.
# Needs Python 3.11 or newer with venv; downloads packages and nothing else. Extra arguments go to `kdjax compare`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_kdjax train

exec "$venv/bin/kdjax" compare configs/fashion_mnist/few_labels.py --methods labels hard_label kd dkd --seeds 0 1 2 \
  --run runs/demo "$@"
