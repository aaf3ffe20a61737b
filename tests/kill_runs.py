"""Kills training, precompute and generate at random moments (SIGKILL) and checks that nothing is lost or left behind.

    python tests/kill_runs.py --count 100 --seed 0

After a kill the same command is given again, and must end as if nothing had happened: the
same weights, the same cache, the same video, bit for bit, and no other files than the uninterrupted run leaves.
"""

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file
from training_runs import flags, write_inputs

from diffsynth_omniavatar.media.video import probe_video, read_frames

IMPORTS = 0.6
"""Share of a run that is over before it writes anything."""
Command = Callable[[Path], list[str]]
"""The command line of a run that writes into a folder."""


def run(command: Command, out: Path, seconds: float | None = None) -> float:
    """Run a command, killed after so many seconds; gives the seconds that it ran.

    Raises:
        RuntimeError: it ended by itself, with another exit code than 0.
    """
    start = time.monotonic()
    with (out.parent / "log.txt").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", *command(out)], stdout=log, stderr=log)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return time.monotonic() - start
    if code:
        raise RuntimeError(f"exit code {code}: {(out.parent / 'log.txt').read_text()[-2000:]}")
    return time.monotonic() - start


def digest(folder: Path) -> dict[str, str]:
    """Name -> hash of each file below a folder: of its tensors, of the steps of a log, of the pictures of a video.

    Of files that name their folder or have times in them it counts that they are there.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = hashlib.sha256(content_of(path)).hexdigest()
    return files


def content_of(path: Path) -> bytes:
    """What of a file is the same in each run."""
    if path.name in ("loop.pt", "config.yaml", "training_args.json"):
        return b""
    if path.name == "loss.csv":
        return b",".join(line.split(b",")[0] for line in path.read_bytes().splitlines())
    if path.suffix == ".safetensors":
        return b"".join(
            name.encode() + tensor.view(torch.uint8).numpy().tobytes()
            for name, tensor in sorted(load_file(path).items())
        )
    if path.suffix == ".mp4":
        return read_frames(path).numpy().tobytes()
    return path.read_bytes()


def commands(inputs: Path) -> dict[str, Command]:
    """The three kinds of runs, on small networks."""
    family = ["--models_folder", str(inputs / "family"), "--device", "cpu", "--dtype", "float32"]
    shape = ["--height", "32", "--width", "32", "--num_frames", "17"]
    soundfile.write(inputs / "speech.wav", 0.1 * np.random.default_rng(0).standard_normal(12800), 16000)
    Image.new("RGB", (64, 64), "grey").save(inputs / "face.png")

    def train(out: Path) -> list[str]:
        words = flags(inputs, out, "--max_steps", "6", "--save_steps", "2", "--resume", "auto")
        return ["diffsynth_omniavatar.train", *words]

    def encode(out: Path) -> list[str]:
        table = str(inputs / "clips.csv")
        return ["diffsynth_omniavatar", "precompute", table, str(out), *family, *shape, "--references", "2"]

    def talk(out: Path) -> list[str]:
        words = ["diffsynth_omniavatar", "generate", *family, "--prompt", "a", "--image", str(inputs / "face.png")]
        words += ["--audio", str(inputs / "speech.wav"), "--out", str(out / "talk.mp4"), "--silence", "0"]
        words += ["--height", "32", "--width", "32", "--max_tokens", "9", "--overlap", "5", "--cfg_scale", "1"]
        return [*words, "--steps", "2"]

    return {"train": train, "precompute": encode, "generate": talk}


def check_what_is_there(kind: str, out: Path) -> None:
    """What a kill left can be used: a video plays as far as it goes."""
    for video in out.glob("*.mp4") if kind == "generate" else ():
        if video.stat().st_size > 4096:
            assert probe_video(video).frames > 0, video


def kill_and_go_on(kind: str, command: Command, wanted: dict[str, str], lasts: float, chance: random.Random) -> None:
    """Kill a run once or twice, let it end, and compare with the uninterrupted run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        for _ in range(chance.choice((1, 1, 2))):
            run(command, out, chance.uniform(IMPORTS * lasts, lasts))
            check_what_is_there(kind, out)
        run(command, out)
        assert digest(out) == wanted, f"{kind}: {sorted(set(digest(out).items()) ^ set(wanted.items()))}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the number of laws that were broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="kills in all (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--only", nargs="+", help="train, precompute, generate (default: all in turn)")
    given = parser.parse_args(arguments)
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    broken, chance = 0, random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_inputs(Path(folder))
        kinds = {name: run for name, run in commands(inputs).items() if given.only is None or name in given.only}
        whole = {}
        for name, command in kinds.items():
            out = inputs / f"whole_{name}" / "out"
            out.parent.mkdir()
            lasts = run(command, out)
            whole[name] = digest(out), lasts
            shutil.rmtree(out.parent)
            print(f"{name}: {lasts:.1f} s uninterrupted, {len(whole[name][0])} files", flush=True)
        for index in range(given.count):
            name = list(kinds)[index % len(kinds)]
            try:
                kill_and_go_on(name, kinds[name], *whole[name], chance)
            except (AssertionError, RuntimeError) as error:
                broken += 1
                print(f"kill {index}: {name}: {error}", flush=True)
    print(f"{given.count} kills, {broken} laws broken")
    return broken


if __name__ == "__main__":
    sys.exit(min(main(), 1))
