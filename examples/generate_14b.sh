#!/usr/bin/env bash
# The released 14B model: its files (about 70 GB), a look at the machine, and a video.
#   bash examples/generate_14b.sh face.png speech.wav talk.mp4
set -euo pipefail
image=${1:?portrait} audio=${2:?speech} out=${3:-talk.mp4}
folder=${MODELS_FOLDER:-pretrained_models}

hf download Wan-AI/Wan2.1-T2V-14B --local-dir "$folder/Wan2.1-T2V-14B"
hf download OmniAvatar/OmniAvatar-14B --local-dir "$folder/OmniAvatar-14B"
hf download facebook/wav2vec2-base-960h --local-dir "$folder/wav2vec2-base-960h"

omniavatar doctor --model 14B --models_folder "$folder"
omniavatar generate --model 14B --models_folder "$folder" \
    --prompt "A realistic video of a person speaking directly to the camera." \
    --image "$image" --audio "$audio" --out "$out" \
    --steps 25 --cfg_scale 4.5 --tea_cache_l1_thresh 0.14
