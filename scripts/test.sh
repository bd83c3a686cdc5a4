#!/usr/bin/env bash
# The tests on a fresh machine. Extra arguments go to pytest: `scripts/test.sh -m slow` runs the long ones.
# `scripts/test.sh --quick` runs a part of them, for while one works.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_kdjax dev

workers=(-n "${KDJAX_TEST_WORKERS:-2}" --dist loadgroup --no-loadscope-reorder)

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
if [ "${1:-}" = "--quick" ]; then
  shift
  set -- -m "not slow" "${workers[@]}" tests/losses/logits tests/losses/test_import.py tests/objectives/test_terms.py \
    tests/objectives/test_binding.py tests/objectives/test_conformance_elements.py tests/tasks tests/data tests/training/test_step.py \
    tests/training/test_evaluation.py tests/experiment/test_config.py tests/test_imports.py tests/test_reduction.py "$@"
elif [ "$#" -eq 0 ]; then
  set -- -m "not slow" "${workers[@]}"
fi
exec "$venv/bin/python" -m pytest "$@"
