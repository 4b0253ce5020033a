#!/usr/bin/env bash
# Makes .venv with exactly the packages of requirements.lock, and Headrace itself on top.
# `make install` calls it when the lock or pyproject.toml changed. PYTHON=/path/to/python chooses the Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly needed_mb=4000

die() {
  printf 'make install: %s\n' "$1" >&2
  exit 1
}

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' &>/dev/null; }

# Run, not looked up: a version manager's shim exists for versions that are not installed.
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python; do
    if usable "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  die "Headrace needs Python 3.11 or newer, and found ${PYTHON:-$(python3 --version 2>/dev/null || echo none)}.
  Debian and Ubuntu: apt install python3.11 python3.11-venv    macOS: brew install python@3.11
  Or name one: make install PYTHON=/path/to/python3.11"
}

make_venv() {
  local python
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' &>/dev/null ||
    die "$("$python" --version) lacks venv. Debian and Ubuntu: apt install python3-venv"
  local free_mb
  free_mb=$(df -Pk . | awk 'NR == 2 {print int($4 / 1024)}')
  ((free_mb >= needed_mb)) || die "needs $needed_mb MB in $PWD, and only $free_mb MB are free"
  printf 'Making .venv with %s\n' "$("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv
}

# A folder that was moved or whose Python was removed leaves a .venv that does not run.
usable .venv/bin/python && [[ $(head -n 1 .venv/bin/pip) == "#!$PWD/.venv/bin/"* ]] || make_venv

pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@" --quiet --quiet; }

printf 'Installing %s packages into .venv, which takes about a minute the first time\n' "$(grep -c == requirements.lock)"
began=$SECONDS
# Without dependencies: the lock names them all, and one of them asks for a package that we do not want (pyproject.toml).
# And without compiling: that would double the time, and Python compiles what it imports by itself.
pip install --no-deps --no-compile --requirement requirements.lock
# Where pip's index offers a GPU build of torch, that build wants libraries which the lock, made for the CPU, lacks.
pip install --constraint requirements.lock torch
# Editable, so that the `faust` script finds our packages; with the locked setuptools, so that nothing is fetched.
pip install --no-deps --no-build-isolation --editable .
touch .venv/.installed
printf 'Installed in %s s\n' "$((SECONDS - began))"
