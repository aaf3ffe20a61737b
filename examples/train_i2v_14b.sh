#!/usr/bin/env bash
# Fine-tune the released OmniAvatar-14B (portrait and speech to video) from a cache, with the authors' recipe. One GPU of 80 GB.
#   bash examples/precompute_14b.sh                         once: writes the cache
#   bash examples/train_i2v_14b.sh
#   bash examples/train_i2v_14b.sh --resume latest          goes on; any other flag of the launcher fits there too
#   ACCELERATE_CONFIG=examples/accelerate/8gpus.yaml bash examples/train_i2v_14b.sh
set -euo pipefail
data=${DATA:-cache/i2v}
output=${OUTPUT:-runs/i2v_14b}
checkpoint=${CHECKPOINT:-pretrained_models/OmniAvatar-14B}
config=${ACCELERATE_CONFIG:-examples/accelerate/1gpu.yaml}

[ -e "$checkpoint" ] || hf download OmniAvatar/OmniAvatar-14B --local-dir "$checkpoint"

accelerate launch --config_file "$config" -m diffsynth_omniavatar.train \
    --omniavatar_mode i2v \
    --dataset_base_path "$(dirname "$data")" --dataset_metadata_path "$data" --dataset_num_workers 2 \
    --model_id_with_origin_paths "Wan-AI/Wan2.1-T2V-14B:diffusion_pytorch_model*.safetensors" \
    --omniavatar_checkpoint "$checkpoint" \
    --learning_rate 1e-4 --warmup_steps 100 --max_grad_norm 1.0 \
    --max_steps 2000 --gradient_accumulation_steps 4 \
    --use_gradient_checkpointing \
    --output_path "$output" --save_steps 100 --checkpoints_total_limit 3 --enable_csv_log \
    "$@"
