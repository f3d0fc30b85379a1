#!/usr/bin/env bash
# The whole program on a card, in at most five minutes: the table of docs/explanation/speed.md's open rows.
#
#   benchmarks/card.sh                          from a clone, with the program installed
#   PUBLISHED=../CASA benchmarks/card.sh        beside the authors' code
#   DEVICE=cpu SIZES=64 benchmarks/card.sh      to see that it runs
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${FOLDER:-$(mktemp -d)}
trap '[ -n "${FOLDER:-}" ] || rm -rf "$folder"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
"${PYTHON:-python}" -m benchmarks.whole "$folder" --device "${DEVICE:-cuda}" --sizes "${SIZES:-1.3b,14b}" \
    --agreement "${AGREEMENT:-256}" --minutes "${MINUTES:-5}" ${RESULTS:+--results "$RESULTS"} \
    ${PUBLISHED:+--published "$PUBLISHED"}
