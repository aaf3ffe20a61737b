#!/usr/bin/env bash
# Fine-tune the released OmniAvatar-1.3B (portrait and speech to video) straight from a table of clips: text, sound and frames
# are encoded in every step. One GPU.
#   bash examples/train_i2v_1.3b.sh
#   bash examples/train_i2v_1.3b.sh --resume latest         goes on; any other flag of the launcher fits there too
. "$(dirname "$0")/training.sh"
checkpoint=${CHECKPOINT:-pretrained_models/OmniAvatar-1.3B}
wan=Wan-AI/Wan2.1-T2V-1.3B

get OmniAvatar/OmniAvatar-1.3B "$checkpoint"
get facebook/wav2vec2-base-960h "$wav2vec2"

train i2v "${DATA:-data/metadata.csv}" "$checkpoint" "${OUTPUT:-runs/i2v_1.3b}" \
    --dataset_num_workers 4 \
    --model_id_with_origin_paths "$wan:diffusion_pytorch_model*.safetensors,$wan:models_t5_umt5-xxl-enc-bf16.pth,$wan:Wan2.1_VAE.pth" \
    --wav2vec2_path "$wav2vec2" \
    "$@"
