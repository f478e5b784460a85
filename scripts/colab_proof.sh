#!/usr/bin/env bash
# Tests the notebooks as Colab runs them: from the built wheel, in an empty folder, in an environment whose installed
# packages must not be replaced.
#
# Run: scripts/colab_proof.sh [FOLDER]    (`make colab`; needs 10 GB in FOLDER, by default a temporary folder)
# Colab's image is in no registry, so its Python and the relevant packages are pinned here: Python 3.13 (August 2026), a torch
# that is not the newest, and the oldest numpy and pandas for this Python. A dependency that would replace them in Colab also
# replaces them here.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python="${COLAB_PYTHON:-3.13}"
preinstalled=(torch==2.12.1 numpy==2.1.3 pandas==2.2.3 matplotlib==3.10.0 "ipykernel<7" pip)
papermill="${PAPERMILL:-$root/.venv/bin/papermill}"
work="${1:-$(mktemp -d)}"
uv python find -q "$python" >/dev/null || {
  echo "Python $python is not installed: run \`uv python install $python\`, or set COLAB_PYTHON to another version." >&2
  exit 1
}
mkdir -p "$work/empty"
work="$(cd "$work" && pwd)"
export TOKENIZERS_PARALLELISM=false PYTHONPATH=

echo "== the wheel"
rm -rf "$work/dist"
uv build -q --wheel --out-dir "$work/dist" "$root"
wheel="$(echo "$work"/dist/ssetools-*.whl)"
echo "$(basename "$wheel"), $(stat -c %s "$wheel") bytes"

echo "== an environment like Colab's"
uv venv -q --clear --python "$python" "$work/venv"
uv pip install -q --python "$work/venv/bin/python" "${preinstalled[@]}"
"$work/venv/bin/python" -m ipykernel install --prefix "$work/kernel" --name colab >/dev/null 2>&1
"$work/venv/bin/pip" freeze >"$work/before.txt"
"$work/venv/bin/python" --version

echo "== the installation of the first cell"
"$work/venv/bin/pip" install -q --disable-pip-version-check "$wheel[notebooks]"
"$work/venv/bin/pip" freeze | grep -v "^ssetools @" >"$work/after.txt"
changed="$(grep -vxFf "$work/after.txt" "$work/before.txt" || true)"
echo "replaced: ${changed:-nothing}; added: $(grep -cvxFf "$work/before.txt" "$work/after.txt") packages"
if grep -E "^(torch|numpy|nvidia-|triton)" <<<"$changed"; then
  echo "Installing ssetools replaced packages that Colab has already imported (above)." >&2
  exit 1
fi
"$work/venv/bin/pip" check

echo "== notebooks 01 to 04, with reduced settings"
cp "$root"/notebooks/0[1-4]_*.ipynb "$work/"
cd "$work/empty"
rm -rf runs ./*.ipynb
"$work/venv/bin/python" - "$work" <<'PY'
import sys
from pathlib import Path

import ssetools

assert Path(ssetools.__file__).is_relative_to(sys.argv[1]), f"{ssetools.__file__} is not from the wheel"
PY
export JUPYTER_PATH="$work/kernel/share/jupyter"
run() {
  local started=$SECONDS
  "$papermill" --no-progress-bar -k colab "$work/$1.ipynb" "$1.ipynb" "${@:2}" >"$work/$1.log" 2>&1 ||
    { tail -n 20 "$work/$1.log" >&2; exit 1; }
  echo "$1: $((SECONDS - started)) s"
}
run 01_profile
run 02_select -p languages "yo en" -p matrix_tokens 64
run 03_finetune -p max_tokens 2048
run 04_evaluate -p max_tokens 2048
ls -d runs/*/yo/specific-seed0/metrics.json
