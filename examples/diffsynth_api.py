"""OmniAvatar through DiffSynth's own API (2.1; on 1.1.9 import from diffsynth.pipelines.wan_video_new): one clip.

    python examples/diffsynth_api.py --models_folder pretrained_models --image face.png --audio speech.wav

After `register()` the pipeline's `from_pretrained` takes an OmniAvatar checkpoint and a wav2vec2 folder among the
`model_configs`. Any of them may be `ModelConfig(model_id=..., origin_file_pattern=...)` instead, to be downloaded.
"""

import argparse
from glob import glob

import torch
from diffsynth.pipelines.wan_video import ModelConfig, WanVideoPipeline

import diffsynth_omniavatar as omni
from diffsynth_omniavatar.media.sound import load_sound
from diffsynth_omniavatar.media.writer import VideoWriter

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--models_folder", required=True)
parser.add_argument("--image", required=True)
parser.add_argument("--audio", required=True)
parser.add_argument("--num_frames", type=int, default=81)
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--device", default="cuda")
parser.add_argument("--out", default="clip.mp4")
args = parser.parse_args()

omni.register()
wan = f"{args.models_folder}/Wan2.1-T2V-14B"
pipe = WanVideoPipeline.from_pretrained(
    torch_dtype=torch.bfloat16,
    device=args.device,
    model_configs=[
        ModelConfig(path=sorted(glob(f"{wan}/diffusion_pytorch_model*.safetensors"))),
        ModelConfig(path=f"{wan}/models_t5_umt5-xxl-enc-bf16.pth"),
        ModelConfig(path=f"{wan}/Wan2.1_VAE.pth"),
        ModelConfig(path=f"{args.models_folder}/OmniAvatar-14B"),
        ModelConfig(path=f"{args.models_folder}/wav2vec2-base-960h"),
    ],
    tokenizer_config=ModelConfig(path=f"{wan}/google/umt5-xxl"),
)
frames = pipe(
    prompt="A realistic video of a person speaking directly to the camera.",
    input_image=args.image,
    input_audio=args.audio,
    num_frames=args.num_frames,
    num_inference_steps=args.steps,
    cfg_scale=4.5,
    audio_cfg_scale=3.0,
    seed=42,
    output_type="floatpoint",  # a tensor [3, F, H, W] in [-1, 1]; the default is a list of PIL images
)
delay = pipe.conventions.leading_audio_rows / 25  # the first frame is the portrait, before the sound
with VideoWriter(args.out, *frames.shape[2:], sound=load_sound(args.audio), sound_delay=delay) as writer:
    writer.write(frames.permute(1, 2, 3, 0))
