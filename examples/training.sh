# Read by the train_*.sh: what their runs have in common.
set -euo pipefail
wav2vec2=${WAV2VEC2:-pretrained_models/wav2vec2-base-960h}
config=${ACCELERATE_CONFIG:-examples/accelerate/1gpu.yaml}

get() { # repository, folder
    [ -e "$2" ] || hf download "$1" --local-dir "$2"
}

train() { # mode, table or cache, checkpoint, folder to write, further flags
    local mode=$1 data=$2 checkpoint=$3 output=$4
    shift 4
    accelerate launch --quiet --config_file "$config" -m diffsynth_omniavatar.train \
        --omniavatar_mode "$mode" \
        --dataset_base_path "$(dirname "$data")" --dataset_metadata_path "$data" \
        --omniavatar_checkpoint "$checkpoint" \
        --learning_rate 1e-4 --warmup_steps 100 --max_grad_norm 1.0 \
        --max_steps 2000 --gradient_accumulation_steps 4 \
        --use_gradient_checkpointing \
        --output_path "$output" --save_steps 100 --checkpoints_total_limit 3 --enable_csv_log \
        "$@"
}
