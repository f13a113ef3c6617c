#!/usr/bin/env bash
# A GPU day in one command of at most 12 minutes: checks what needs a card, measures, and prints one table.
#
#   bench/gpu.sh                      # on a machine with a card, from a checkout whose package is installed
#   bench/gpu.sh --output gpu.md      # the table into a file too
#   bench/gpu.sh --tiny               # the same at toy sizes, as on any machine without a card: tries the script
#   bench/gpu.sh dit celeba64         # some parts only; --help lists them
#
# Python is $PYTHON, or that of .venv (make setup), or python3. The checks need pytest. diffusers is measured beside if
# $PEERS (a Python that has it; make bench-peers), this Python, or pip within a minute has it. Exit code 1: a part
# failed, and its row says why.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-}
if [ -z "$python" ]; then
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
if ! "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("advect") is None)'; then
    echo "$python has no advect; run: $python -m pip install -e '.[dev]', or name another Python in PYTHON" >&2
    exit 2
fi

peers=${PEERS:-}
if [ -z "$peers" ] && [ -x .venv-peers/bin/python ]; then peers=.venv-peers/bin/python; fi

export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
exec "$python" bench/gpu.py ${peers:+--peers "$peers"} "$@"
