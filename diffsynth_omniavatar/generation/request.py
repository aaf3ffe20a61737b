"""Inputs and settings of a video: one checked object, made before any model is loaded.

The command line, a line of an input file and Python make it alike; `inputs.read_inputs` then reads its files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..media.images import ImageSource
from ..media.sound import SoundSource
from ..media.timeline import DEFAULT_OVERLAP, clip_length
from ..media.writer import SUFFIXES
from ..model.config import Conventions, has_masked_video, size_fault
from ..model.sampling import Sampling, Solver
from ..system.output_folder import can_write, nearest_existing
from .masks import MaskSource
from .preview import PREVIEW_SUFFIXES

LARGEST_CRF = 51
LONGEST_SILENCE = 3600
"""Seconds."""
LARGEST_SEED = 2**62
TEA_CACHE_MODELS = ("Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B", "Wan2.1-I2V-14B-480P", "Wan2.1-I2V-14B-720P")
"""Models for which DiffSynth has TeaCache coefficients."""

_ARGUMENT = re.compile(r"(?<![\w/.-])@(\w+)")
"""The name of an argument, and no part of a file's."""


class RequestError(ValueError):
    """Something of a request is wrong. The message names arguments as Python has them, `flags()` as the command line.

    Args:
        text: the message, in which `@name` stands for the argument of that name.
        parts: the faults that the message puts together, where it is more than one.
    """

    def __init__(self, text: str, parts: Sequence[str] = ()) -> None:
        self.text = text
        self.parts = list(parts) or [text]
        super().__init__(_ARGUMENT.sub(r"\1", text))

    def by_argument(self) -> dict[str, str]:
        """The faults without their @, by the argument that each names first; "" where it names none."""
        found: dict[str, list[str]] = {}
        for part in self.parts:
            name = _ARGUMENT.search(part)
            found.setdefault(name[1] if name else "", []).append(_ARGUMENT.sub(r"\1", part))
        return {name: "; ".join(faults) for name, faults in found.items()}

    def flags(self) -> str:
        """The message with flags: --name."""
        return _ARGUMENT.sub(r"--\1", self.text)


@contextmanager
def faults_of(name: str) -> Iterator[None]:
    """A ValueError or OSError inside the block becomes a `RequestError` that begins with the argument's name."""
    try:
        yield
    except RequestError:
        raise
    except (ValueError, OSError) as error:
        raise RequestError(f"@{name}: {error}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """What videos of all kinds have in common: where they go, and how the model makes them.

    None for negative_prompt, match_colours, steps, timesteps, sigma_shift, solver, cfg_scale, audio_cfg_scale,
    apg_eta and guidance_... takes what `sampler` says, or the checkpoint's config.json (`Conventions.sampling`), or
    else upstream's values.

    Raises:
        RequestError: a value is out of its range, or the output cannot be written.
    """

    prompt: str
    """Description of the video."""
    out: str | Path | None = None
    """The .mp4, .mov or .mkv file to write; None to keep the frames in memory, as a `Clip`."""
    negative_prompt: str | None = None
    """Description of what to avoid."""
    mouth_mask: MaskSource | None = None
    """V2V: see `masks.load_mouth_mask`."""
    reference_video: str | Path | None = None
    """65 channels: another clip of the person, by default another part of the video."""
    height: int | None = None
    """Pixels of what the model makes, a multiple of 16, with `width`; None for the trained size nearest in shape."""
    width: int | None = None
    """Pixels, a multiple of 16, with `height`."""
    max_tokens: int | None = None
    """Length of a chunk: frames * height * width / 1024; None for the trained length."""
    overlap: int = DEFAULT_OVERLAP
    """Frames that each chunk shares with the one before, 4n+1."""
    match_colours: bool | None = None
    """Give each chunk the colours of the portrait or the source video, against drift in long videos; see
    `colours.match_colours`."""
    silence: float | None = None
    """Seconds of silence in front of the speech; None for 0.3, and for V2V 0."""
    sampler: str | None = None
    """A preset of all settings from `steps` to `guidance_to`, one of `model.sampling.SAMPLERS`."""
    steps: int | None = None
    """Denoising steps per chunk."""
    timesteps: str | Sequence[float] | None = None
    """Timesteps of the steps, before `sigma_shift` acts, like "1000,750,500,250"; empty for equal distances."""
    sigma_shift: float | None = None
    """Shift of the noise schedule."""
    solver: Solver | None = None
    """"euler", or "renoise": fresh noise after each step."""
    cfg_scale: float | None = None
    """Text and audio guidance scale; 1 turns guidance off, but for that of `audio_cfg_scale`."""
    audio_cfg_scale: float | None = None
    """Separate audio guidance scale, with one more pass per step."""
    apg_eta: float | None = None
    """0 to 1, adaptive projected guidance against burnt colours; see `guidance.projected`."""
    guidance_rescale: float | None = None
    """0 to 1, against burnt colours; see `guidance.rescaled`."""
    guidance_from: float | None = None
    """Part of the steps before which there is no guidance, 0 to 1."""
    guidance_to: float | None = None
    """Part of the steps from which on there is no guidance, 0 to 1."""
    seed: int = 42
    """Random seed; chunk k starts from the noise of seed + k."""
    tiled: bool | None = None
    """Run the VAE in tiles; None for "above 720x720"."""
    tea_cache_l1_thresh: float | None = None
    """TeaCache: skip steps that change less; None computes all."""
    tea_cache_model_id: str | None = None
    """Whose TeaCache coefficients; None for the denoiser's own."""
    crf: int = 15
    """Quality of the H.264 file, 0 (lossless) to 51; 13 to 18 look like the original."""
    preview: str | Path | None = None
    """A .png, .jpg or .webp file that after each step shows what the chunk has come to, a small picture for each latent
    frame."""

    def __post_init__(self) -> None:
        faults = [text for text in self._faults() if text is not None]
        if faults:
            raise RequestError("; ".join(faults) + ".", faults)

    def sampling(self, of_checkpoint: Sampling) -> Sampling:
        """How the video is sampled: as the checkpoint says, but for what is given here.

        Raises:
            RequestError: a value is out of its range.
        """
        try:
            return of_checkpoint.with_given(
                sampler=self.sampler, **{field.name: getattr(self, field.name) for field in fields(Sampling)}
            )
        except ValueError as error:  # it begins with the field's name
            raise RequestError(f"@{error}") from error

    def settings(self) -> dict[str, Any]:
        """The fields that all kinds share, as arguments."""
        return {field.name: getattr(self, field.name) for field in fields(Settings)}

    def _faults(self) -> Iterator[str | None]:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            yield f"@prompt is {self.prompt!r}, wanted a description of the video"
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                yield f"@{name} has half of a surrogate pair, which is no character"
        if (self.height is None) != (self.width is None):
            yield "give both @height and @width, or neither"
        elif self.height is not None and self.width is not None:
            fault = size_fault(self.height, self.width)
            yield fault and f"@height and @width are {fault}"
        yield out_of_range("max_tokens", self.max_tokens, lambda n: n > 0, "more than 0")
        yield out_of_range("overlap", self.overlap, lambda n: n >= 1 and clip_length(n) == n, "1, 5, 9, 13, ...")
        silences = f"0 to {LONGEST_SILENCE} seconds"
        yield out_of_range("silence", self.silence, lambda seconds: 0 <= seconds <= LONGEST_SILENCE, silences)
        seeds = f"a whole number from -{LARGEST_SEED} to {LARGEST_SEED}"
        yield out_of_range("seed", self.seed, lambda n: isinstance(n, int) and abs(n) <= LARGEST_SEED, seeds)
        yield out_of_range("crf", self.crf, lambda n: 0 <= n <= LARGEST_CRF, f"0 to {LARGEST_CRF}")
        yield out_of_range("tea_cache_l1_thresh", self.tea_cache_l1_thresh, lambda x: x >= 0, "0 or more")
        if self.tea_cache_model_id is not None and self.tea_cache_model_id not in TEA_CACHE_MODELS:
            yield f"@tea_cache_model_id is {self.tea_cache_model_id!r}, wanted one of {', '.join(TEA_CACHE_MODELS)}"
        try:
            self.sampling(Sampling())
        except RequestError as error:
            yield error.text.rstrip(".")
        if self.out is not None:
            yield file_fault("out", Path(self.out))
        if self.preview is not None:
            yield file_fault("preview", Path(self.preview), PREVIEW_SUFFIXES)
            for name in ("image", "mouth_mask"):
                given = getattr(self, name, None)
                if isinstance(given, (str, Path)) and Path(given).resolve() == Path(self.preview).resolve():
                    yield f"@preview {self.preview} is the file of @{name} too"


@dataclass(frozen=True, kw_only=True, eq=False)
class TalkRequest(Settings):
    """A talking video: the arguments of `generate`.

    Raises:
        RequestError: a value is out of its range, or the output cannot be written.
    """

    audio: SoundSource
    """The speech: a file, `Sound`, ..."""
    image: ImageSource | None = None
    """The portrait. V2V: the reference image, by default the video's first frame."""
    crop_portrait: bool = False
    """Take of the portrait the head and the shoulders of its largest face, in the shape of the video."""
    video: str | Path | None = None
    """V2V: the video to dub; see `aligned`."""
    aligned: bool | None = None
    """V2V: the model takes the video whole, as its picture: a face at the places that it was trained on. A video that
    is shorter than the sound then plays forward, then backward, in turn. Else it is dubbed as `DubRequest` says. None
    for what the checkpoint's config.json says."""
    paste_source: bool = True
    """V2V, aligned: keep the source's own pixels outside the mouth."""

    def is_dub(self, in_dim: int, conventions: Conventions) -> bool:
        """Whether it names a video whose face a checkpoint of so many input channels has to have cut out first."""
        aligned = conventions.aligned if self.aligned is None else self.aligned
        return has_masked_video(in_dim) and self.video is not None and not aligned

    def _faults(self) -> Iterator[str | None]:
        if self.image is None and self.video is None:
            yield "give @image, or @video for a V2V checkpoint"
        yield from super()._faults()


def out_of_range(name: str, value: Any, is_good: Callable[[Any], bool], wanted: str) -> str | None:
    """What is wrong with an argument that is no number or not in its range; None where it is None or good."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and is_good(value)):
        return None
    return f"@{name} is {value!r}, wanted {wanted}"


def file_fault(name: str, file: Path, suffixes: Sequence[str] = SUFFIXES) -> str | None:
    """Why nothing can be written to the file of an argument, or None; folders that are missing are made later."""
    if file.parts[:1] and file.parts[0].startswith("~"):
        return f"@{name} {file} begins with ~, which only a shell takes for your home folder; give the whole path"
    if file.suffix.lower() not in suffixes:
        return f"@{name} {file} must end in {', '.join(suffixes)}"
    if file.is_dir():
        return f"@{name} {file} is a folder, wanted a file"
    folder = nearest_existing(file.parent)
    if not folder.is_dir():
        return f"@{name} {file}: {folder} is a file, wanted a folder"
    if not can_write(folder):
        return f"@{name} {file}: the folder {folder} cannot be written to"
    if file.exists() and not os.access(file, os.W_OK):
        return f"@{name} {file} is there and cannot be written to"
    return None
