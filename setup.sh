#!/usr/bin/env bash
# Make the virtual environment the Makefile works in. Run by `make setup`; safe to run again.
#   PYTHON  the interpreter (python3.11)     VENV  where it goes (.venv)
#   TORCH   a torch requirement of your own, such as torch==2.11.0 or a wheel's path; without it, a torch
#           that is already in the environment stays, and otherwise the one in constraints.txt is installed.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3.11} venv=${VENV:-.venv} torch=${TORCH:-}

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)

if [ -n "$torch" ]; then
  echo "setup: installing $torch"
  "${pip[@]}" install "$torch"
elif ! "$venv/bin/python" -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
  echo "setup: installing torch"
  "${pip[@]}" install "$(grep -m1 '^torch==' constraints.txt)"
fi

# Everything else keeps to the tested versions, and to the torch that is now there.
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -v '^torch==' constraints.txt > "$constraints"
"$venv/bin/python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >> "$constraints"
echo "setup: installing mos and its tools"
"${pip[@]}" install -c "$constraints" -e '.[dev]'
touch "$venv/.ready"
echo "setup: done; commands are in $venv/bin"
