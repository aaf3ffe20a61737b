#!/usr/bin/env bash
# Train the small model that this package ships, all of it: VAE, wav2vec2, OmniAvatar I2V and V2V. The people are drawn and
# their speech is synthesised. One GPU of 80 GB.
#   bash examples/nano_train.sh
#   OUTPUT=runs/nano I2V_STEPS=9000 V2V_STEPS=3000 bash examples/nano_train.sh
#   ACCELERATE_CONFIG=examples/accelerate/8gpus.yaml PROCESSES=64 BATCH_SIZE=16 bash examples/nano_train.sh    # per GPU
# FROM names a folder like the shipped weights: its wav2vec2 is taken, and VAE and I2V start from its own.
#   FROM=diffsynth_omniavatar/nano/weights bash examples/nano_train.sh
# Parts that are there are kept and interrupted ones go on, so it can be run again, or in parts, each within some minutes:
#   bash examples/nano_train.sh draw vae speech start
#   bash examples/nano_train.sh cache i2v
#   bash examples/nano_train.sh v2v ship
set -euo pipefail
output=${OUTPUT:-runs/nano}
clips=${CLIPS:-3000}
i2v_steps=${I2V_STEPS:-4400}
v2v_steps=${V2V_STEPS:-1300}
device=${DEVICE:-cuda}
config=${ACCELERATE_CONFIG:-examples/accelerate/1gpu.yaml}
from=${FROM:-}
model=$output/model
shape=(--height 128 --width 128 --num_frames 33)
if [ "$device" = cpu ]; then launched=(--cpu) compiled=(); else launched=(--mixed_precision bf16) compiled=(--compile); fi
drawing=

draw() { # beside what follows: it needs no GPU
    [ -e "$output/clips/metadata.csv" ] && return
    python -m diffsynth_omniavatar.nano.speaker "$output/clips" --lively --clips "$clips" --frames 41 --lead 40 \
        --silent 0.04 --split train &
    drawing=$!
}

drawn() { # waits until the clips are there
    [ -z "$drawing" ] || wait "$drawing"
    drawing=
}

vae() {
    [ -e "$output/vae/vae.json" ] && return
    # shellcheck disable=SC2086
    python -m diffsynth_omniavatar.nano.train_vae "$output/vae" --lively --device "$device" --clips "$clips" \
        ${from:+--start_from "$from/vae.safetensors"} ${VAE_FLAGS:-}
}

speech() {
    [ -e "$output/wav2vec2/model.safetensors" ] && return
    if [ -n "$from" ]; then
        mkdir -p "$output/wav2vec2"
        cp "$from"/wav2vec2/* "$output/wav2vec2"
        return
    fi
    # shellcheck disable=SC2086
    python -m diffsynth_omniavatar.nano.train_speech "$output/wav2vec2" --device "$device" ${SPEECH_FLAGS:-}
}

start() {
    [ -e "$model/wav2vec2/model.safetensors" ] || \
        python -m diffsynth_omniavatar.nano.assemble start "$model" --vae "$output/vae" --wav2vec2 "$output/wav2vec2"
}

cache() {
    # One cache for both: what V2V takes of a clip holds what I2V takes. Encoding is made of small kernels, so several
    # processes share the GPU; they meet on the CPU.
    drawn
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node "${PROCESSES:-12}" \
        -m diffsynth_omniavatar precompute "$output/clips/metadata.csv" "$output/cache" --models_folder "$model" \
        --device "$device" --omniavatar_mode v2v --first_frame known --dtype float32 --audio_dtype float32 \
        --references 4 "${shape[@]}"
}

train() { # mode, steps, further flags
    local mode=$1 steps=$2
    shift 2
    [ -e "$output/$mode/step-$steps" ] && return
    # Repeated, as the loader's processes start anew with each epoch.
    accelerate launch --quiet --config_file "$config" "${launched[@]}" -m diffsynth_omniavatar.train --omniavatar_mode "$mode" \
        --dataset_base_path "$output" --dataset_metadata_path "$output/cache" --dataset_num_workers "${WORKERS:-12}" \
        --dataset_repeat 500 "${shape[@]}" --wav2vec2_path "$model/wav2vec2" --dtype float32 \
        --batch_size "${BATCH_SIZE:-128}" --warmup_steps "${WARMUP_STEPS:-200}" --lr_schedule cosine --max_grad_norm 1.0 --log_steps 50 \
        --leading_audio_rows 0 --prefix_frames 1,5,9,13 --max_tokens 576 \
        --text_drop_prob 0.1 --audio_drop_prob 0.1 --prefix_drop_prob 0.1 \
        --max_steps "$steps" --output_path "$output/$mode" --save_steps "${SAVE_STEPS:-500}" --checkpoints_total_limit 2 \
        --enable_csv_log --resume auto "$@"
}

i2v() { # all weights
    local begin=(--model_paths "[\"$model/diffusion_pytorch_model.safetensors\"]")
    [ -z "$from" ] || begin=(--model_paths "[]" --omniavatar_checkpoint "$from/omniavatar/model.safetensors")
    train i2v "$i2v_steps" "${begin[@]}" --trainable_models dit --learning_rate "${I2V_RATE:-1e-3}" "${compiled[@]}"
}

v2v() { # a LoRA, the audio modules and the patch embedding, on the I2V model
    train v2v "$v2v_steps" --model_paths "[]" --omniavatar_checkpoint "$output/i2v/step-$i2v_steps" \
        --first_frame known --lora_rank 16 --mouth_weight 4 --learning_rate "${V2V_RATE:-1e-3}"
}

ship() {
    python -m diffsynth_omniavatar.nano.assemble ship "$model" "$output/weights" \
        --i2v "$output/i2v/step-$i2v_steps" --v2v "$output/v2v/step-$v2v_steps"
}

[ $# -gt 0 ] || set -- draw vae speech start cache i2v v2v ship
for part in "$@"; do
    case $part in
        draw | vae | speech | start | cache | i2v | v2v | ship) "$part" ;;
        *) echo "no part $part; wanted some of draw vae speech start cache i2v v2v ship" >&2 && exit 2 ;;
    esac
done
drawn
