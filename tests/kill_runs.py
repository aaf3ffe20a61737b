"""Kills training, precompute and generate at random moments (SIGKILL) and checks that nothing is lost or left behind.

    python tests/kill_runs.py --count 100 --seed 0

Each run is a forked process. After a kill the same command is given again, and must end as if nothing had happened: the
same weights, the same cache, the same video, byte for byte, and no other files than the uninterrupted run leaves.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from training_runs import flags, write_inputs

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.data import precompute  # noqa: F401  imported once, before the forks
from diffsynth_omniavatar.generation import generate, loading  # noqa: F401
from diffsynth_omniavatar.media.video import probe_video
from diffsynth_omniavatar.training import run as training

Command = Callable[[Path], int]
"""A run that writes into a folder; gives its exit code."""


def forked(command: Command, out: Path, seconds: float | None = None) -> float:
    """Run a command in a forked process, killed after so many seconds; gives the seconds that it ran.

    Raises:
        RuntimeError: it ended by itself, with another exit code than 0.
    """
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        log = os.open(out.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            code = command(out)
        finally:
            os._exit(code)
    while seconds is None or time.monotonic() - start < seconds:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise RuntimeError(f"status {status}: {(out.parent / 'log.txt').read_text()[-2000:]}")
            return time.monotonic() - start
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return seconds


def digest(folder: Path) -> dict[str, str]:
    """Name -> hash of each file below a folder; logs of times, which differ from run to run, by their steps alone."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "loss.csv":
                content = b",".join(line.split(b",")[0] for line in content.splitlines())
            files[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return files


def commands(inputs: Path) -> dict[str, Command]:
    """The three kinds of runs, on small networks."""
    family = ["--models_folder", str(inputs / "family"), "--device", "cpu", "--dtype", "float32"]
    shape = ["--height", "32", "--width", "32", "--num_frames", "17"]
    soundfile.write(inputs / "speech.wav", 0.1 * np.random.default_rng(0).standard_normal(12800), 16000)
    Image.new("RGB", (64, 64), "grey").save(inputs / "face.png")

    def train(out: Path) -> int:
        return training.main(flags(inputs, out, "--max_steps", "6", "--save_steps", "2", "--resume", "auto"))

    def encode(out: Path) -> int:
        return cli.main(["precompute", str(inputs / "clips.csv"), str(out), *family, *shape, "--references", "2"])

    def talk(out: Path) -> int:
        words = ["generate", *family, "--prompt", "a", "--image", str(inputs / "face.png"), "--steps", "2"]
        words += ["--audio", str(inputs / "speech.wav"), "--out", str(out / "talk.mp4"), "--silence", "0"]
        words += ["--height", "32", "--width", "32", "--max_tokens", "9", "--overlap", "5", "--cfg_scale", "1"]
        return cli.main(words)

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
            forked(command, out, chance.uniform(0, lasts))
            check_what_is_there(kind, out)
        forked(command, out)
        assert digest(out) == wanted, f"{kind}: {sorted(set(digest(out).items()) ^ set(wanted.items()))}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the number of laws that were broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="kills in all (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--only", nargs="+", help="train, precompute, generate (default: all in turn)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    broken, chance = 0, random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        inputs = write_inputs(Path(folder))
        kinds = {name: run for name, run in commands(inputs).items() if given.only is None or name in given.only}
        whole = {}
        for name, command in kinds.items():
            out = inputs / f"whole_{name}" / "out"
            out.parent.mkdir()
            lasts = forked(command, out)
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
