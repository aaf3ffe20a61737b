"""The whole way on a processor with two cores, in minutes: generate, fine-tune on a new person, generate again, dub a
film, report.

    omniavatar demo

The small model that is part of this package speaks with the face of somebody that it has never seen and that no face
of its training resembles. A data set of that person is drawn, encoded and trained on, with the same commands as for
the big models. Then somebody small in a film gets other words. A page shows videos, curves and figures of before and
after.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import soundfile
from PIL import Image

from ..generation.pipeline import OmniAvatarPipeline
from ..media.timeline import SAMPLE_RATE
from ..media.video import read_frames
from ..metrics.picture import psnr
from ..metrics.sync import correlation
from ..model.checkpoint import read_config, weight_files
from ..model.config import Conventions
from ..model.files import NANO_FOLDER, NANO_I2V
from ..nano.batch import Sampling
from ..nano.measure import measure_mouth
from ..nano.regions import mouth_region, static_region
from ..nano.speaker.canvas import SIZE
from ..nano.speaker.clips import SpeakerClip, draw_clip, write_clips
from ..nano.speaker.identity import Identity
from ..nano.stage import generate_file, load_family, write_video
from ..nano.validation import validation_loss
from .demo_dub import DubbedFilm, dub_command, dub_film
from .demo_page import Shown, dubbing_conclusion, page, table, training_losses

FRAMES = 53
"""Of a video: two chunks."""
TRAIN_STEPS = 120
TRAIN_CLIPS, TRAIN_FRAMES = 12, 49
HELD_OUT_CLIPS, SAMPLE_FRAMES = 4, 33
REFERENCES = 4
"""Frames of a clip that can be the reference."""
BATCH = 4
RANK, LEARNING_RATE = 16, 1e-3
SEED = 42
"""That of `omniavatar generate`."""

NEWCOMER = Identity(
    hair="white",
    long_hair=False,
    clothes="orange",
    background="green",
    iris="brown",
    skin=(222, 172, 136),
    shade=(1.0, 1.0, 1.0),
    face_width=34.0,
    jaw_width=25.0,
    eye_distance=17.5,
    eye_size=1.45,
    brow_height=13.0,
    brow_tilt=2.5,
    nose_length=13.0,
    lip_thickness=4.0,
    parting=4.0,
    fringe=-5.0,
    mouth_drop=8.0,
)
"""A narrow face, high brows, a low fringe and big eyes: sizes that `draw_identity` never draws. The colours are
those of others, as the small VAE shows no new ones."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Where things lie, and how much is done.

    Attributes:
        out: folder of the report.
        family: folder of the model; None for the one of this package.
        steps: denoising steps a chunk; None for the checkpoint's.
        train_steps: optimizer steps.
    """

    out: Path
    family: Path | None
    steps: int | None
    train_steps: int

    @property
    def folder(self) -> Path:
        """Of the model."""
        return NANO_FOLDER if self.family is None else self.family

    @property
    def work(self) -> Path:
        """What training reads and writes; of this run alone."""
        return self.out / "finetune"

    @property
    def base(self) -> Path:
        """The I2V checkpoint that training starts from."""
        return self.folder / NANO_I2V.relative_to(NANO_FOLDER)

    @property
    def tuned(self) -> Path:
        """The checkpoint at the end of training."""
        return self.work / "run" / f"step-{self.train_steps}"

    @property
    def conventions(self) -> Conventions:
        """Of the checkpoint that training starts from."""
        return read_config(weight_files(self.base)).conventions

    @property
    def sampling(self) -> Sampling:
        """As `omniavatar generate` samples."""
        settings = asdict(self.conventions.sampling)
        return Sampling(**settings | {"steps": self.steps or settings["steps"]}, seed=SEED)

    def commands(self, run: str = "run") -> list[list[str]]:
        """Encode the data set, and train on it; checkpoints go to the folder `run`."""
        shape = ["--height", str(SIZE), "--width", str(SIZE), "--num_frames", str(SAMPLE_FRAMES)]
        precompute = [
            *("omniavatar", "precompute", str(self.work / "data" / "metadata.csv"), str(self.work / "cache")),
            *("--models_folder", str(self.folder), "--device", "cpu", "--dtype", "float32"),
            *("--audio_dtype", "float32", "--references", str(REFERENCES), *shape),
        ]
        # As one epoch: a checkpoint is written at the end of each.
        repeat = math.ceil(self.train_steps * BATCH / TRAIN_CLIPS)
        train = [
            *("accelerate", "launch", "--quiet", "--cpu", "--num_processes", "1", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no"),
            *("--num_cpu_threads_per_process", str(os.cpu_count() or 1)),
            *("-m", "diffsynth_omniavatar.train", "--model_paths", "[]", "--omniavatar_checkpoint", str(self.base)),
            *("--dataset_metadata_path", str(self.work / "cache"), "--dataset_base_path", str(self.work / "cache")),
            *("--dtype", "float32", *shape, "--max_tokens", str(self.conventions.max_tokens)),
            *("--lora_rank", str(RANK), "--learning_rate", str(LEARNING_RATE)),
            *("--warmup_steps", str(min(5, self.train_steps)), "--max_grad_norm", "1.0"),
            *("--batch_size", str(BATCH), "--dataset_repeat", str(repeat), "--max_steps", str(self.train_steps)),
            *("--log_steps", "10", "--enable_csv_log", "--output_path", str(self.work / run)),
        ]
        return [precompute, train]

    def generate_command(self, name: str, tuned: Path | None = None) -> list[str]:
        """The new person's video `name`.mp4 by hand; after training with the checkpoint `tuned`."""
        return [
            *("omniavatar", "generate", "--model", "nano"),
            *(() if self.family is None else ("--models_folder", str(self.family))),
            *(() if tuned is None else ("--omniavatar", str(tuned))),
            *("--prompt", NEWCOMER.describe(False), "--image", str(self.out / "newcomer.png")),
            *("--audio", str(self.out / "newcomer.wav"), "--silence", "0"),
            *(() if self.steps is None else ("--steps", str(self.steps))),
            *("--out", str(self.out / f"{name}.mp4")),
        ]

    def commands_by_hand(self, prompt: str) -> list[list[str]]:
        """All that is done once clips and film are drawn, as one types it in the folder of the report.

        Args:
            prompt: what the film shows.
        """
        here = replace(self, out=Path())
        return [
            here.generate_command("before"),
            *here.commands("again"),  # a run does not go over another's checkpoints
            here.generate_command("after", here.tuned),
            dub_command(here.out, here.family, prompt, here.steps),
        ]


def run_demo(
    out: str | Path = "demo",
    family: str | Path | None = None,
    *,
    steps: int | None = None,
    train_steps: int = TRAIN_STEPS,
) -> Path:
    """Do all of it; files of an earlier run are replaced.

    Args:
        out: folder to write.
        family: folder of the small model; None for the one of this package.
        steps: denoising steps a chunk; None for the checkpoint's.
        train_steps: optimizer steps.

    Returns:
        The page, report.html in `out`.

    Raises:
        FileNotFoundError: weights are missing; ChildProcessError: encoding or training failed.
    """
    started = time.monotonic()
    # Absolute, as the commands on the page are for the report's folder.
    family = None if family is None else Path(family).absolute()
    demo = Demo(out=Path(out), family=family, steps=steps, train_steps=train_steps)
    if not demo.base.is_file():
        raise FileNotFoundError(
            f"{demo.folder} has no {NANO_I2V.relative_to(NANO_FOLDER)}: give --family a small model's folder."
        )
    shutil.rmtree(demo.work, ignore_errors=True)
    demo.work.mkdir(parents=True)
    newcomer, held_out = _draw(demo)

    _say("1. A video of somebody new, by the model as it is")
    pipe = load_family(demo.folder, "i2v", "cpu")
    before = _generate(demo, pipe, newcomer, "before", "before")
    losses = [validation_loss(pipe, held_out, draws=4, batch=2)]
    del pipe

    _say(f"2. Encoding {TRAIN_CLIPS} clips of the new person, and {demo.train_steps} steps of training on them")
    for command in demo.commands():
        _run(command)

    _say("3. The same video again")
    pipe = load_family(demo.folder, "i2v", "cpu", tuned=demo.tuned)
    after = _generate(demo, pipe, newcomer, "after", "after")
    losses.append(validation_loss(pipe, held_out, draws=4, batch=2))
    shown = [before, after, _drawn(demo, newcomer)]
    del pipe

    _say("4. Somebody in a film says something else")
    dubbed = dub_film(demo.out, demo.folder, demo.steps)

    return _report(demo, shown, losses, newcomer, dubbed, time.monotonic() - started)


def _report(
    demo: Demo,
    shown: Sequence[Shown],
    losses: Sequence[float],
    newcomer: SpeakerClip,
    dubbed: DubbedFilm,
    seconds: float,
) -> Path:
    """Write the page, and print its figures."""
    content = page(
        shown,
        losses,
        training_losses(demo.work / "run" / "loss.csv"),
        newcomer,
        dubbed,
        demo.commands_by_hand(dubbed.film.prompt),
        train_clips=TRAIN_CLIPS,
        held_out_clips=HELD_OUT_CLIPS,
        seconds=seconds,
    )
    path = demo.out / "report.html"
    path.write_text(content, encoding="utf-8")
    print()
    for name, *values in table(shown, losses):
        print(f"{name:<44}" + "".join(f" {value:>8}" for value in values))
    print(f"\n{dubbing_conclusion(dubbed)}")
    print(f"\n{path}: open it in a browser. {seconds:.0f} s in all.")
    return path


def _say(message: str) -> None:
    print(f"\n{message}", flush=True)


def _draw(demo: Demo) -> tuple[SpeakerClip, list[SpeakerClip]]:
    """A clip of the new person, and held-out ones; writes the portrait, sound and data set.

    Words and voices of all but the data set are those that no training has.
    """
    newcomer = draw_clip(2, FRAMES, split="evaluation", identity=NEWCOMER, sways=False)
    held_out = [
        draw_clip(10 + index, SAMPLE_FRAMES, split="evaluation", identity=NEWCOMER) for index in range(HELD_OUT_CLIPS)
    ]
    write_clips(demo.work / "data", range(TRAIN_CLIPS), TRAIN_FRAMES, split="train", identity=NEWCOMER)
    Image.fromarray(newcomer.frames[0]).save(demo.out / "newcomer.png")
    soundfile.write(demo.out / "newcomer.wav", newcomer.waveform, SAMPLE_RATE, subtype="FLOAT")
    return newcomer, held_out


def _generate(demo: Demo, pipe: OmniAvatarPipeline, clip: SpeakerClip, name: str, title: str) -> Shown:
    path = demo.out / f"{name}.mp4"
    generate_file(pipe, clip, path, demo.sampling, show_progress=True)
    return _measure(path, title, clip, pipe.conventions.leading_audio_rows)


def _drawn(demo: Demo, clip: SpeakerClip) -> Shown:
    write_video(demo.out / "drawn.mp4", clip.frames, clip.waveform)
    return _measure(demo.out / "drawn.mp4", "truth", clip, 0)


def _measure(path: Path, title: str, clip: SpeakerClip, leading: int) -> Shown:
    """What the file shows, against the truth."""
    frames = read_frames(path).numpy()[leading:]
    openness, width = measure_mouth(frames)
    around = mouth_region(clip.identity)
    return Shown(
        path=path,
        title=title,
        openness=openness,
        openness_r=correlation(openness, clip.openness),
        width_r=correlation(width, clip.width),
        mouth_psnr=psnr(frames, clip.frames, around),
        static_psnr=psnr(frames, clip.frames[0], static_region(clip.identity)),
    )


def _run(command: Sequence[str]) -> None:
    """Run a command of this Python's environment, its output shown.

    Raises:
        ChildProcessError: it failed.
    """
    print(f"$ {shlex.join(command)}", flush=True)
    modules = {"omniavatar": "diffsynth_omniavatar", "accelerate": "accelerate.commands.accelerate_cli"}
    done = subprocess.run([sys.executable, "-m", modules[command[0]], *command[1:]])
    if done.returncode != 0:
        raise ChildProcessError(f"`{shlex.join(command)}` ended with code {done.returncode}; its output says why.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar demo`."""
    add = parser.add_argument
    add("--out", default="demo", help="folder of the report (default: demo)")
    add("--family", help="folder of a small model (default: the one of this package)")
    add("--steps", type=int, help="denoising steps per chunk (default: the checkpoint's)")
    add(
        "--train_steps",
        type=int,
        default=TRAIN_STEPS,
        help=f"optimizer steps of the fine-tuning (default: {TRAIN_STEPS})",
    )


def run(args: argparse.Namespace) -> int:
    """`omniavatar demo`."""
    run_demo(args.out, args.family, steps=args.steps, train_steps=args.train_steps)
    return 0
