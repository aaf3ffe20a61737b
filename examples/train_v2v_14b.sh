#!/usr/bin/env bash
# Train OmniAvatar-14B to change the mouth of a video (V2V, 49 channels), from a cache. It starts from the released checkpoint,
# whose patch embedding gets 16 more channels of zeros. One GPU of 80 GB.
#   MODE=v2v bash examples/precompute_14b.sh                once: writes the cache
#   bash examples/train_v2v_14b.sh
#   bash examples/train_v2v_14b.sh --resume latest          goes on; any other flag of the launcher fits there too
#   ACCELERATE_CONFIG=examples/accelerate/8gpus.yaml bash examples/train_v2v_14b.sh
. "$(dirname "$0")/training.sh"
checkpoint=${CHECKPOINT:-pretrained_models/OmniAvatar-14B}

get OmniAvatar/OmniAvatar-14B "$checkpoint"

train v2v "${DATA:-cache/v2v}" "$checkpoint" "${OUTPUT:-runs/v2v_14b}" \
    --first_frame known \
    --dataset_num_workers 2 --height 512 --width 512 --num_frames 81 \
    --model_id_with_origin_paths "Wan-AI/Wan2.1-T2V-14B:diffusion_pytorch_model*.safetensors" \
    "$@"
