#!/usr/bin/env bash
# Encode a table of clips once, so that training loads neither text encoder nor VAE nor wav2vec2. Wan's three encoders are the
# same for 14B and 1.3B, and so is the cache. A run that was stopped goes on where it was.
#   bash examples/precompute_14b.sh                         cache/i2v, for examples/train_i2v_14b.sh
#   MODE=v2v bash examples/precompute_14b.sh                cache/v2v, for examples/train_v2v_14b.sh
#   ACCELERATE_CONFIG=examples/accelerate/8gpus.yaml bash examples/precompute_14b.sh
set -euo pipefail
mode=${MODE:-i2v}
data=${DATA:-data/metadata.csv}
cache=${CACHE:-cache/$mode}
wav2vec2=${WAV2VEC2:-pretrained_models/wav2vec2-base-960h}
config=${ACCELERATE_CONFIG:-examples/accelerate/1gpu.yaml}

[ -e "$wav2vec2" ] || hf download facebook/wav2vec2-base-960h --local-dir "$wav2vec2"

flags=(--omniavatar_mode "$mode")
[ "$mode" = i2v ] || flags+=(--first_frame known --height 512 --width 512 --num_frames 81)

omniavatar check "$data" "${flags[@]}" || echo "The clips with faults are left out."
accelerate launch --quiet --config_file "$config" -m diffsynth_omniavatar precompute "$data" "$cache" \
    --model 14B --wav2vec2 "$wav2vec2" "${flags[@]}" "$@"
