"""A portrait and speech to a video of any length.

    python examples/generate_i2v.py --image face.png --audio speech.wav

Without --models_folder the released 14B files are downloaded to models/. In the folder that `omniavatar demo` made:

    python ../examples/generate_i2v.py --model nano --image newcomer.png --audio newcomer.wav --steps 10
"""

import argparse

import diffsynth_omniavatar as omni

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="14B")
parser.add_argument("--models_folder")
parser.add_argument("--image", required=True)
parser.add_argument("--audio", required=True)
parser.add_argument("--prompt", default="A realistic video of a person speaking directly to the camera.")
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--out", default="talk.mp4")
args = parser.parse_args()

pipe = omni.load_pipeline(args.model, args.models_folder)
video = omni.generate(
    pipe,
    prompt=args.prompt,
    image=args.image,
    audio=args.audio,
    out=args.out,
    steps=args.steps,
    seed=42,
)
print(f"{video.path}: {video.frames} frames of {video.height}x{video.width} in {video.seconds:.0f} s")
