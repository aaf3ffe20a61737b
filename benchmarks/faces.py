"""How fast faces are found in a video: decoding, the detector, the mesh, and all of it as a track.

    python benchmarks/faces.py VIDEO --frames 200 --processes 1
    python benchmarks/faces.py VIDEO --frames 200 --processes 16

Each process reads the same video and works on one thread, as `omniavatar prepare` does. Frames per second of all
processes together by the clock, and milliseconds of CPU time a frame; last the jitter of the raw landmarks: the median
of their second differences by axis, as a standard deviation of the places, in distances between the eyes.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context

import numpy as np
import torch

from diffsynth_omniavatar.media.faces.face import Track
from diffsynth_omniavatar.media.faces.find import FaceFinder
from diffsynth_omniavatar.media.faces.measures import LEFT_EYE, RIGHT_EYE
from diffsynth_omniavatar.media.faces.tracks import find_tracks
from diffsynth_omniavatar.media.video import iter_frames

PASSES = ("decode", "find anew", "follow", "decode and track")
_IN_MEMORY = 20


def measure(path: str, count: int, name: str) -> tuple[int, float, float]:
    """Frames, and seconds by the clock and of the CPU."""
    torch.set_num_threads(1)
    finder = FaceFinder()
    frames = list(islice(iter_frames(path), _IN_MEMORY))
    frames = [frames[index % len(frames)] for index in range(count)]
    faces = finder.faces(frames[0])
    clock, cpu = time.perf_counter(), time.process_time()
    if name == "decode":
        count = sum(1 for _ in islice(iter_frames(path), count))
    elif name == "find anew":
        for frame in frames:
            finder.faces(frame)
    elif name == "follow":
        for frame in frames:
            faces = finder.follow(frame, faces)
    else:
        tracks = find_tracks(islice(iter_frames(path), count), finder=finder)
        count = max(track.frames.stop for track in tracks)
    return count, time.perf_counter() - clock, time.process_time() - cpu


def jitter(track: Track) -> float:
    """Of frames in a row that have the face, in percent of the distance between the eyes."""
    points = np.stack(
        [face.points.numpy()[:, :2] for face in track.faces if face is not None and face.points is not None]
    )
    eyes = np.linalg.norm(points[:, LEFT_EYE].mean(1) - points[:, RIGHT_EYE].mean(1), axis=1).mean()
    second = np.abs(points[2:] - 2 * points[1:-1] + points[:-2])
    # 1.4826: from the median to the standard deviation of a normal one; 6: from second differences to places
    return float(np.median(second, axis=0).mean() * 1.4826 / np.sqrt(6) / eyes * 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    print("| pass | frames/s | CPU ms / frame |")
    print("| --- | --- | --- |")
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for name in PASSES:
            jobs = [pool.submit(measure, arguments.video, arguments.frames, name) for _ in range(arguments.processes)]
            results = np.array([job.result() for job in jobs])
            frames, clock, cpu = results[:, 0].sum(), results[:, 1].max(), results[:, 2].sum()
            print(f"| {name} | {frames / clock:.1f} | {1000 * cpu / frames:.1f} |", flush=True)
    for track in find_tracks(islice(iter_frames(arguments.video), arguments.frames), keep_points=True):
        print(
            f"track of {len(track.faces)} frames from {track.start}: jitter {jitter(track):.2f} % of the eyes' distance"
        )


if __name__ == "__main__":
    main()
