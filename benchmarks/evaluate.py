"""How long `omniavatar evaluate` takes for a clip of 5 s at 512x512: figures that need no weights, with a reference.

    python benchmarks/evaluate.py VIDEO --clips 10 --device cpu --threads 2
    python benchmarks/evaluate.py VIDEO --clips 100 --device cuda

The clips are pieces of VIDEO, which shows somebody who talks; each one's reference is the piece itself, encoded more
finely. Prints Markdown rows: seconds by the clock and of the CPU for a clip, and GB of GPU memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from diffsynth_omniavatar.media.sound import Sound, load_sound
from diffsynth_omniavatar.media.video import probe_video, read_frames
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.metrics.clip import ClipFiles
from diffsynth_omniavatar.metrics.evaluate import evaluate
from diffsynth_omniavatar.metrics.networks import Networks

SECONDS, FRAME_RATE, SIZE = 5, 25, 512
GROUPS = {
    "file": ["file"],
    "stability": ["stability"],
    "lips, motion": ["lips", "motion"],
    "picture": ["picture"],
    "all of them": ["file", "lips", "motion", "stability", "picture"],
}


def write_piece(video: str, start: int, folder: Path) -> ClipFiles:
    """5 s of the video from frame `start` on, and its reference."""
    frames = read_frames(video, start, SECONDS * FRAME_RATE, (SIZE, SIZE))
    sound = load_sound(video)
    first = start * sound.rate // FRAME_RATE
    cut = Sound(sound.samples[:, first : first + SECONDS * sound.rate], sound.rate)
    paths = [folder / f"{start}_{crf}.mp4" for crf in (30, 12)]
    for path, crf in zip(paths, (30, 12), strict=True):
        with VideoWriter(path, SIZE, SIZE, sound=cut, crf=crf) as writer:
            writer.write(frames)
    return ClipFiles(generated=paths[0], reference=paths[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    networks = Networks(device=args.device)
    last = probe_video(args.video).frames - SECONDS * FRAME_RATE
    print("| figures | s a clip | CPU s a clip | GPU GB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        starts = sorted({round(last * place / max(args.clips - 1, 1)) for place in range(args.clips)})
        clips = [write_piece(args.video, start, Path(folder)) for start in starts]
        evaluate(clips[:1], GROUPS["all of them"], networks)  # what is loaded and compiled once
        for name, groups in GROUPS.items():
            clock, cpu = time.perf_counter(), time.process_time()
            found = evaluate(clips, groups, networks)
            clock, cpu = (time.perf_counter() - clock) / len(clips), (time.process_time() - cpu) / len(clips)
            assert len(found.clips) == len(clips), found.failed
            memory = torch.cuda.max_memory_allocated() / 1e9 if args.device.startswith("cuda") else 0
            print(f"| {name} | {clock:.2f} | {cpu:.2f} | {memory:.1f} |", flush=True)


if __name__ == "__main__":
    main()
