"""The whole way on a processor with two cores, in minutes: generate, fine-tune on a new person, generate again, report.

    omniavatar demo

The small model that is part of this package speaks with the face of somebody that it has never seen and that no face
of its training resembles. A data set of that person is drawn, encoded and trained on, with the same commands as for
the big models. A page shows videos, curves and figures of before and after.
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
from dataclasses import dataclass
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
from ..nano.regions import static_region
from ..nano.speaker.clips import SpeakerClip, draw_clip, write_clips
from ..nano.speaker.drawing import SIZE
from ..nano.speaker.identity import Identity
from ..nano.stage import generate_file, load_family, write_video
from ..nano.validation import validation_loss
from ..training.callbacks import find_latest
from .demo_page import Shown, page, table, training_losses

FRAMES = 73
"""Of a video: three chunks."""
STEPS = 10
TRAIN_STEPS = 120
TRAIN_CLIPS, TRAIN_FRAMES = 12, 49
HELD_OUT_CLIPS, SAMPLE_FRAMES = 4, 33
REFERENCES = 4
"""Frames of a clip that can be the reference."""
BATCH = 4
RANK, LEARNING_RATE = 16, 1e-3

NEWCOMER = Identity(
    hair="white",
    long_hair=False,
    clothes="orange",
    background="dark blue",
    iris="brown",
    skin=(222, 172, 136),
    shade=(1.0, 1.0, 1.0),
    face_width=34.0,
    jaw_width=25.0,
    eye_distance=17.5,
    eye_size=1.45,
    brow_height=13.0,
    brow_tilt=2.5,
    nose_length=7.0,
    lip_thickness=4.0,
    parting=4.0,
    fringe=-5.0,
)
"""A narrow face, high brows, a low fringe and big eyes: sizes that `draw_identity` never draws. The colours are
those of others, as the small VAE shows no new ones."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Where things lie, and how much is done.

    Attributes:
        out: folder of the report.
        family: folder of the model.
        sampling: how videos are made.
        train_steps: optimizer steps.
    """

    out: Path
    family: Path
    sampling: Sampling
    train_steps: int

    @property
    def work(self) -> Path:
        """What training reads and writes; of this run alone."""
        return self.out / "finetune"

    @property
    def base(self) -> Path:
        """The I2V checkpoint that training starts from."""
        return self.family / NANO_I2V.relative_to(NANO_FOLDER)

    @property
    def conventions(self) -> Conventions:
        """Of that checkpoint."""
        return read_config(weight_files(self.base)).conventions

    def commands(self) -> list[list[str]]:
        """Encode the data set, and train on it."""
        shape = ["--height", str(SIZE), "--width", str(SIZE), "--num_frames", str(SAMPLE_FRAMES)]
        precompute = [
            *("omniavatar", "precompute", str(self.work / "data" / "metadata.csv"), str(self.work / "cache")),
            *("--models_folder", str(self.family), "--device", "cpu", "--dtype", "float32"),
            *("--audio_dtype", "float32", "--references", str(REFERENCES), *shape),
        ]
        train = [
            *("accelerate", "launch", "--cpu", "--num_processes", "1", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no"),
            *("--num_cpu_threads_per_process", str(os.cpu_count() or 1)),
            *("-m", "diffsynth_omniavatar.train", "--model_paths", "[]", "--omniavatar_checkpoint", str(self.base)),
            *("--dataset_metadata_path", str(self.work / "cache"), "--dataset_base_path", str(self.work / "cache")),
            *("--wav2vec2_path", str(self.family / "wav2vec2"), "--dtype", "float32", *shape),
            *(
                "--lora_rank",
                str(RANK),
                "--learning_rate",
                str(LEARNING_RATE),
                "--warmup_steps",
                str(min(5, self.train_steps)),
            ),
            # As one epoch: a checkpoint is written at the end of each.
            *("--batch_size", str(BATCH), "--dataset_repeat", str(math.ceil(self.train_steps * BATCH / TRAIN_CLIPS))),
            *("--max_tokens", str(self.conventions.max_tokens), "--max_steps", str(self.train_steps)),
            *(
                "--max_grad_norm",
                "1.0",
                "--log_steps",
                "10",
                "--enable_csv_log",
                "--output_path",
                str(self.work / "run"),
            ),
        ]
        return [precompute, train]

    def generate_command(self) -> list[str]:
        """The video after training, by hand."""
        settings = self.sampling
        return [
            *("omniavatar", "generate", "--models_folder", str(self.family), "--dit", str(self.base)),
            *("--omniavatar", str(find_latest(self.work / "run"))),
            *("--prompt", NEWCOMER.describe(False), "--negative_prompt", settings.negative_prompt),
            *("--image", str(self.out / "newcomer.png"), "--audio", str(self.out / "newcomer.wav")),
            *("--steps", str(settings.steps), "--cfg_scale", str(settings.cfg_scale)),
            *("--seed", str(settings.seed), "--silence", "0"),
            "--match_colours" if settings.match_colours else "--no-match_colours",
            *("--out", str(self.out / "again.mp4")),
        ]


def run_demo(
    out: str | Path = "demo",
    family: str | Path | None = None,
    *,
    steps: int = STEPS,
    train_steps: int = TRAIN_STEPS,
) -> Path:
    """Do all of it; files of an earlier run are replaced.

    Args:
        out: folder to write.
        family: folder of the small model; None for the one of this package.
        steps: denoising steps a chunk.
        train_steps: optimizer steps.

    Returns:
        The page, report.html in `out`.

    Raises:
        FileNotFoundError: weights are missing; ChildProcessError: encoding or training failed.
    """
    started = time.monotonic()
    family = Path(NANO_FOLDER if family is None else family)
    if not (family / NANO_I2V.relative_to(NANO_FOLDER)).is_file():
        raise FileNotFoundError(
            f"{family} has no {NANO_I2V.relative_to(NANO_FOLDER)}: give --family a small model's folder."
        )
    demo = Demo(out=Path(out), family=family, sampling=Sampling(steps=steps), train_steps=train_steps)
    shutil.rmtree(demo.work, ignore_errors=True)
    demo.work.mkdir(parents=True)
    known, newcomer, held_out = _draw(demo)

    _say("1. A video of a person of the kind that the model knows, and one of somebody new")
    pipe = load_family(demo.family, "i2v", "cpu")
    shown = [_generate(demo, pipe, known, "known", "A person of the kind that it knows")]
    before = _generate(demo, pipe, newcomer, "before", "Somebody new, before fine-tuning")
    losses = [validation_loss(pipe, held_out, draws=4, batch=2)]
    del pipe

    _say(f"2. Encoding {TRAIN_CLIPS} clips of the new person, and {demo.train_steps} steps of training on them")
    for command in demo.commands():
        _run(command)

    _say("3. The same video again")
    pipe = load_family(demo.family, "i2v", "cpu", tuned=find_latest(demo.work / "run"))
    after = _generate(demo, pipe, newcomer, "after", "The same, after fine-tuning")
    losses.append(validation_loss(pipe, held_out, draws=4, batch=2))
    shown += [before, after, _drawn(demo, newcomer)]

    return _report(demo, shown, losses, newcomer, time.monotonic() - started)


def _report(demo: Demo, shown: Sequence[Shown], losses: Sequence[float], newcomer: SpeakerClip, seconds: float) -> Path:
    """Write the page, and print its figures."""
    content = page(
        shown,
        losses,
        training_losses(demo.work / "run" / "loss.csv"),
        newcomer,
        [*demo.commands(), demo.generate_command()],
        train_clips=TRAIN_CLIPS,
        held_out_clips=HELD_OUT_CLIPS,
        seconds=seconds,
    )
    path = demo.out / "report.html"
    path.write_text(content, encoding="utf-8")
    before, after = shown[1], shown[2]
    print("\n" + "\n".join(f"{name:<44} {old:>8} {new:>8}" for name, old, new in table(before, after, losses)))
    print(f"\n{path}: open it in a browser. {seconds:.0f} s in all.")
    return path


def _say(message: str) -> None:
    print(f"\n{message}", flush=True)


def _draw(demo: Demo) -> tuple[SpeakerClip, SpeakerClip, list[SpeakerClip]]:
    """A known kind of person, the new one, and held-out clips of the new one; writes the portrait, sound and data set.

    Words and voices of all but the data set are those that no training has.
    """
    known = draw_clip(1, FRAMES, split="evaluation", sways=False)
    newcomer = draw_clip(2, FRAMES, split="evaluation", identity=NEWCOMER, sways=False)
    held_out = [
        draw_clip(10 + index, SAMPLE_FRAMES, split="evaluation", identity=NEWCOMER) for index in range(HELD_OUT_CLIPS)
    ]
    write_clips(demo.work / "data", range(TRAIN_CLIPS), TRAIN_FRAMES, split="train", identity=NEWCOMER)
    Image.fromarray(newcomer.frames[0]).save(demo.out / "newcomer.png")
    soundfile.write(demo.out / "newcomer.wav", newcomer.waveform, SAMPLE_RATE, subtype="FLOAT")
    return known, newcomer, held_out


def _generate(demo: Demo, pipe: OmniAvatarPipeline, clip: SpeakerClip, name: str, title: str) -> Shown:
    path = demo.out / f"{name}.mp4"
    generate_file(pipe, clip, path, demo.sampling, show_progress=True)
    return _measure(path, title, clip, pipe.conventions.leading_audio_rows)


def _drawn(demo: Demo, clip: SpeakerClip) -> Shown:
    write_video(demo.out / "drawn.mp4", clip.frames, clip.waveform)
    return _measure(demo.out / "drawn.mp4", "The same as it is drawn: the truth", clip, 0)


def _measure(path: Path, title: str, clip: SpeakerClip, leading: int) -> Shown:
    """What the file shows, against the truth."""
    frames = read_frames(path).numpy()[leading:]
    openness, width = measure_mouth(frames)
    figures = {
        "mouth openness, correlation with the true one": correlation(openness, clip.openness),
        "mouth width, correlation with the true one": correlation(width, clip.width),
        "static regions, PSNR to the portrait (dB)": psnr(frames, clip.frames[0], static_region(clip.identity)),
    }
    return Shown(path=path, title=title, openness=openness, figures=figures)


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
    add("--family", help="folder of a small model like the shipped one, which is the default")
    add("--steps", type=int, default=STEPS, help=f"denoising steps a chunk (default: {STEPS})")
    add("--train_steps", type=int, default=TRAIN_STEPS, help=f"optimizer steps (default: {TRAIN_STEPS})")


def run(args: argparse.Namespace) -> int:
    """`omniavatar demo`."""
    run_demo(args.out, args.family, steps=args.steps, train_steps=args.train_steps)
    return 0
