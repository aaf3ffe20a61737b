"""Runs the commands of README and docs/ that the small model can run, as they stand there but for sizes and steps.

    make docs-commands

They find files with the names that the pages use: a drawn person's portrait and speech, the small model in place of
the released ones. What needs a GPU, weights of others or footage of real people is left out and counted.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import soundfile
from PIL import Image

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.model.files import NANO_FOLDER, NANO_I2V, NANO_V2V
from diffsynth_omniavatar.nano.speaker.clips import draw_clip, write_clips
from diffsynth_omniavatar.nano.speaker.film import draw_film
from diffsynth_omniavatar.nano.stage import write_video

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FRAMES = 9
COMMANDS = {"generate", "dub", "convert", "doctor", "precompute", "evaluate", "plan", "completion"}
OF_GPUS = {"--compile", "--quantize", "--lora", "--nano"}
"""Flags that need a GPU or LoRAs of others; `evaluate --nano` takes minutes and has tests of its own."""
INPUTS = {"--image", "--audio", "--video", "--models_folder", "--omniavatar", "--config", "--reference", "--base",
          "--checkpoints", "--wav2vec2"}  # fmt: skip
FIRST_IS_READ = {"dub", "convert", "precompute", "evaluate"}


def commands() -> list[list[str]]:
    """The words of all `omniavatar` commands in blocks of bash, each once."""
    found: dict[tuple[str, ...], None] = {}
    for page in PAGES:
        blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for line in "".join(blocks).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["omniavatar"]:
                found.setdefault(tuple(words[1:]))
    return [list(words) for words in found]


def write_files() -> None:
    """Files that the commands read, in the working folder."""
    clip = draw_clip(3, FRAMES, split="evaluation", sways=False)
    Image.fromarray(clip.frames[0]).save("face.png")
    soundfile.write("speech.wav", clip.waveform, 16000)
    for name in ("person.mp4", "talk.mp4", "real.mp4"):
        write_video(Path(name), clip.frames, clip.waveform)
    film = draw_film(3, FRAMES)
    Path("demo").mkdir()
    Image.fromarray(clip.frames[0]).save("demo/newcomer.png")
    for name in ("film.mp4", "demo/film.mp4"):
        write_video(Path(name), film.frames, film.speaker.waveform)
    for name in ("demo/film.wav", "demo/newcomer.wav"):
        soundfile.write(name, clip.waveform, 16000)
    for name in ("evaluation_a", "evaluation_b"):
        Path(name).symlink_to("evaluation")
    Path("talk.yaml").write_text("model: nano\n")
    write_clips(Path("data"), range(2), 33, split="train")
    Path("pretrained_models").symlink_to(NANO_FOLDER)
    Path("examples").symlink_to(ROOT / "examples")


def adapted(words: list[str]) -> list[str]:
    """The command for the small model."""
    words = [{"14B": "nano", "1.3B": "nano"}.get(word, word) if words[0] != "plan" else word for word in words]
    checkpoint = NANO_V2V if "lora" in words else NANO_I2V  # the one that is a LoRA, or the full one
    words = [str(checkpoint) if word == "pretrained_models/OmniAvatar-14B" else word for word in words]
    if ">" in words:
        words = words[: words.index(">")]
    if words[0] in ("generate", "dub"):
        words += ["--steps", "1"] + (
            [] if {"--model", "--models_folder", "--config"} & set(words) else ["--model", "nano"]
        )
    return words


def missing(words: list[str]) -> str | None:
    """Why a command cannot run here."""
    if words[0] not in COMMANDS:
        return f"{words[0]}: needs real people, or does not end"
    if any(word == "..." and flag != "--prompt" for flag, word in pairwise(words)):
        return "abbreviated"
    if of_gpus := OF_GPUS & set(words):
        return f"{min(of_gpus)}"
    read = [word for flag, word in pairwise(words) if flag in INPUTS]
    read += words[1:2] if words[0] in FIRST_IS_READ and not words[1].startswith("--") else []
    absent = [name for name in read if not Path(name).exists()]
    return f"needs {absent[0]}" if absent else None


def main() -> int:
    """Run them; gives the exit code."""
    failed, ran, left_out = 0, Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_files()
        for words in map(adapted, commands()):
            if (why := missing(words)) is not None:
                left_out[why] += 1
                continue
            start, said = time.monotonic(), io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = cli.main(words)
            how = "ok    " if code == 0 else "FAILED"
            print(f"{how} {time.monotonic() - start:5.1f} s  omniavatar {shlex.join(words)}", flush=True)
            ran[words[0]] += 1
            if code != 0:
                print(said.getvalue())
                failed += 1
        os.chdir(ROOT)
    print(f"{ran.total()} commands ran, {failed} failed; left out: {dict(left_out)}")
    return int(failed > 0 or set(ran) != COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
