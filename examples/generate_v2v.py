"""Dub a video: the mouth follows other speech, the rest stays.

    python examples/generate_v2v.py --omniavatar checkpoints/v2v --video person.mp4 --audio speech.wav

It takes a V2V checkpoint (49 or 65 input channels) and a video of an aligned face that fills a square picture. The mask
says what is kept (white) and what is generated (black); without one, the built-in mask of the lower face is taken. A
video that is shorter than the speech plays forward, then backward, in turn.
"""

import argparse

import diffsynth_omniavatar as omni

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="14B")
parser.add_argument("--models_folder")
parser.add_argument("--omniavatar", required=True, help="V2V checkpoint: folder or file")
parser.add_argument("--video", required=True)
parser.add_argument("--audio", required=True)
parser.add_argument("--mouth_mask")
parser.add_argument("--prompt", default="A realistic video of a person speaking directly to the camera.")
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--out", default="dubbed.mp4")
args = parser.parse_args()

pipe = omni.load_pipeline(args.model, args.models_folder, omniavatar=args.omniavatar)
if not pipe.dit.config.has_masked_video:
    parser.error(f"{args.omniavatar} has {pipe.dit.config.in_dim} input channels; a V2V checkpoint has 49 or 65.")
video = omni.generate(
    pipe,
    prompt=args.prompt,
    video=args.video,
    mouth_mask=args.mouth_mask,
    audio=args.audio,
    out=args.out,
    steps=args.steps,
)
print(f"{video.path}: {video.frames} frames of {video.height}x{video.width} in {video.seconds:.0f} s")
