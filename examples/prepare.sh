#!/usr/bin/env bash
# Raw footage to the table of clips that examples/precompute_14b.sh encodes. A run that was stopped goes on where it was.
#   bash examples/prepare.sh                                 footage/ to data/, for a model that animates portraits
#   MODE=v2v RAW=interviews bash examples/prepare.sh         for a model that dubs videos
#   CAPTION="python caption.py {clip}" bash examples/prepare.sh --workers 16 --min_face_size 200
set -euo pipefail
mode=${MODE:-i2v}
raw=${RAW:-footage}
out=${OUT:-data}

flags=()
[ -z "${CAPTION:-}" ] || flags+=(--caption_command "$CAPTION")

omniavatar prepare "$raw" --out "$out" --mode "$mode" ${flags[@]+"${flags[@]}"} "$@"
