#!/usr/bin/env bash
# Many videos in one run: a line prompt@@image@@audio each. The samples are those of `omniavatar demo`, which comes first;
# with MODEL_FLAGS="--model 14B --models_folder pretrained_models" it is the released model that makes them.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -e demo/newcomer.wav ] || omniavatar demo
# shellcheck disable=SC2086  # several flags in one variable
omniavatar generate ${MODEL_FLAGS:---model nano} \
    --input_file examples/generate_samples.txt --out_folder outputs
