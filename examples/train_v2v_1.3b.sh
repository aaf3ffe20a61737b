#!/usr/bin/env bash
# Train OmniAvatar-1.3B to change the mouth of a video (V2V), straight from a table of clips, with every frame masked and a
# second part of each clip as reference sequence (65 channels). One GPU.
#   bash examples/train_v2v_1.3b.sh
#   bash examples/train_v2v_1.3b.sh --resume latest         goes on; any other flag of the launcher fits there too
. "$(dirname "$0")/training.sh"
checkpoint=${CHECKPOINT:-pretrained_models/OmniAvatar-1.3B}
wan=Wan-AI/Wan2.1-T2V-1.3B

get OmniAvatar/OmniAvatar-1.3B "$checkpoint"
get facebook/wav2vec2-base-960h "$wav2vec2"

train v2v "${DATA:-data/metadata.csv}" "$checkpoint" "${OUTPUT:-runs/v2v_1.3b}" \
    --first_frame masked --use_ref_sequence \
    --dataset_num_workers 4 --height 512 --width 512 --num_frames 81 \
    --model_id_with_origin_paths "$wan:diffusion_pytorch_model*.safetensors,$wan:models_t5_umt5-xxl-enc-bf16.pth,$wan:Wan2.1_VAE.pth" \
    --wav2vec2_path "$wav2vec2" \
    "$@"
