#!/usr/bin/env bash
# One round of a plan: train for so many seconds, then scan, repair, tables. Run it again with the same FOLDER and it goes on.
# usage: benchmarks/round.sh PLAN FOLDER DATA SECONDS [DEVICE]
# SECONDS is for training; what is trained by then is scanned, repaired by `auto` and put into the tables, which takes minutes a
# model more and can be stopped and run again likewise. Commit FOLDER/cards and the rows; the weights stay where they are.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n 2,5p "$0" >&2
    exit 2
fi
plan=$1 folder=$2 data=$3 seconds=$4 device=${5:-auto}

# Runs a step; 5 says that some of it failed, which cards and rows tell: the rest goes on.
step() {
    local status=0
    "$@" || status=$?
    [ "$status" -eq 0 ] || [ "$status" -eq 5 ] || return "$status"
}

# 124: out of time; the next round goes on after the last finished epoch.
status=0
step timeout --foreground --signal=INT --kill-after=60 "$seconds" \
    modelaudit bench train --plan "$plan" --out "$folder" --data "$data" --device "$device" || status=$?
[ "$status" -eq 0 ] || [ "$status" -eq 124 ] || exit "$status"
step modelaudit bench scan --models "$folder" --data "$data" --out "$folder/rows.jsonl" --paper-code --device "$device"
step modelaudit bench repair --models "$folder" --data "$data" --out "$folder/repairs.jsonl" --method auto --device "$device"
step modelaudit bench tables "$folder/rows.jsonl" "$folder/repairs.jsonl" --cards "$folder/cards" --out "$folder/tables"
