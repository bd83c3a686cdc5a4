# Sourced by demo.sh and test.sh: makes the virtual environment .venv beside this folder and installs kdjax in it.
#
#   PYTHON=python3.12   another Python, 3.11 or newer
#   KDJAX_VENV=folder   another place for the environment

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${KDJAX_VENV:-$root/.venv}"
cd "$root"

if [ ! -x "$venv/bin/python" ]; then
  "${PYTHON:-python3}" - <<'CHECK' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"kdjax needs Python 3.11 or newer, this is {sys.version.split()[0]}; name another one by PYTHON=python3.12.")
CHECK
  echo "Making a virtual environment in $venv ..."
  "${PYTHON:-python3}" -m venv "$venv"
fi

# Installed again only when what is to be installed has changed.
install_kdjax() {
  local wanted stamp="$venv/.kdjax-$1"
  wanted="$(cksum "$root/pyproject.toml")"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing kdjax[$1] ..."
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$1]"
    echo "$wanted" > "$stamp"
  fi
}
