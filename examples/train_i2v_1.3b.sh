#!/usr/bin/env bash
# Fine-tune the released OmniAvatar-1.3B (portrait and speech to video) straight from a table of clips: text, sound and frames
# are encoded in every step. One GPU.
#   bash examples/train_i2v_1.3b.sh
#   bash examples/train_i2v_1.3b.sh --resume latest         goes on; any other flag of the launcher fits there too
set -euo pipefail
data=${DATA:-data/metadata.csv}
output=${OUTPUT:-runs/i2v_1.3b}
checkpoint=${CHECKPOINT:-pretrained_models/OmniAvatar-1.3B}
wav2vec2=${WAV2VEC2:-pretrained_models/wav2vec2-base-960h}
config=${ACCELERATE_CONFIG:-examples/accelerate/1gpu.yaml}
wan=Wan-AI/Wan2.1-T2V-1.3B

[ -e "$checkpoint" ] || hf download OmniAvatar/OmniAvatar-1.3B --local-dir "$checkpoint"
[ -e "$wav2vec2" ] || hf download facebook/wav2vec2-base-960h --local-dir "$wav2vec2"

accelerate launch --config_file "$config" -m diffsynth_omniavatar.train \
    --omniavatar_mode i2v \
    --dataset_base_path "$(dirname "$data")" --dataset_metadata_path "$data" --dataset_num_workers 4 \
    --model_id_with_origin_paths "$wan:diffusion_pytorch_model*.safetensors,$wan:models_t5_umt5-xxl-enc-bf16.pth,$wan:Wan2.1_VAE.pth" \
    --wav2vec2_path "$wav2vec2" \
    --omniavatar_checkpoint "$checkpoint" \
    --learning_rate 1e-4 --warmup_steps 100 --max_grad_norm 1.0 \
    --max_steps 2000 --gradient_accumulation_steps 4 \
    --use_gradient_checkpointing \
    --output_path "$output" --save_steps 100 --checkpoints_total_limit 3 --enable_csv_log \
    "$@"
