#!/usr/bin/env bash
# Fine-tune the released OmniAvatar-14B (portrait and speech to video) from a cache, with the authors' recipe. One GPU of 80 GB.
#   bash examples/precompute_14b.sh                         once: writes the cache
#   bash examples/train_i2v_14b.sh
#   bash examples/train_i2v_14b.sh --resume latest          goes on; any other flag of the launcher fits there too
#   ACCELERATE_CONFIG=examples/accelerate/8gpus.yaml bash examples/train_i2v_14b.sh
. "$(dirname "$0")/training.sh"
checkpoint=${CHECKPOINT:-pretrained_models/OmniAvatar-14B}

get OmniAvatar/OmniAvatar-14B "$checkpoint"

train i2v "${DATA:-cache/i2v}" "$checkpoint" "${OUTPUT:-runs/i2v_14b}" \
    --dataset_num_workers 2 \
    --model_id_with_origin_paths "Wan-AI/Wan2.1-T2V-14B:diffusion_pytorch_model*.safetensors" \
    "$@"
