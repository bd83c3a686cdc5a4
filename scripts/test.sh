#!/usr/bin/env bash
# The tests on a fresh machine. Extra arguments go to pytest: `scripts/test.sh -m slow` runs the long ones.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_kdjax dev

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
if [ "$#" -eq 0 ]; then
  set -- -m "not slow" -n "${KDJAX_TEST_WORKERS:-2}"
fi
exec "$venv/bin/python" -m pytest "$@"
