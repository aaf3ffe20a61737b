"""Folders of the nano family: the one that its training starts from, and the one that this package ships.

python -m diffsynth_omniavatar.nano.assemble start runs/nano --vae runs/vae --wav2vec2 runs/wav2vec2
python -m diffsynth_omniavatar.nano.assemble ship runs/nano OUT --i2v runs/i2v/step-N --v2v runs/v2v/step-N
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..model.checkpoint import load_checkpoint, save_safetensors
from ..model.config import CheckpointConfig
from ..model.files import NANO_FOLDER, NANO_I2V, NANO_V2V
from ..model.files import SMALL_FAMILY as FILES
from ..model.small_family import NANO
from .command_line import module_parser
from .family import half, write_fresh_nano
from .speaker.identity import draw_identity

PROMPTS = 2000
"""Prompts from which the tokenizer learns its words."""
SHIPPED_BYTES = 20e6


def speaker_prompts(count: int = PROMPTS) -> list[str]:
    """Prompts of the training split's speakers, without drawing them."""

    people = (draw_identity(np.random.default_rng(seed), split="train") for seed in range(count))
    return [person.describe(sways) for person in people for sways in (False, True)]


def start(folder: Path, vae: Path, wav2vec2: Path, seed: int = 0) -> None:
    """Write what I2V training starts from.

    Args:
        folder: to write.
        vae, wav2vec2: folders that `train_vae` and `train_speech` wrote.
        seed: of the denoiser's and text encoder's weights.
    """
    write_fresh_nano(folder, speaker_prompts(), seed)
    shutil.copy(vae / FILES["vae"], folder / FILES["vae"])
    _copy_speech(wav2vec2, folder / FILES["wav2vec2"])


def _copy_speech(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, target / name)


def shipped(config: CheckpointConfig) -> CheckpointConfig:
    """What training does not know: what a video for V2V is like, and how to sample."""
    known = {name: getattr(NANO.conventions, name) for name in ("aligned", "template", "sampling")}
    return replace(config, conventions=replace(config.conventions, **known))


def ship(folder: Path, out: Path, i2v: Path, v2v: Path | None) -> int:
    """Write the trained model in float16.

    Args:
        folder: from `start`, with text encoder, tokenizer, VAE and wav2vec2.
        out: to write.
        i2v: checkpoint with all weights; v2v: LoRA checkpoint that was trained on it, or None.

    Returns:
        Bytes in all.

    Raises:
        ValueError: a checkpoint has the wrong form, or it is too much for a package.
    """
    out.mkdir(parents=True, exist_ok=True)
    for part in ("text_encoder", "vae"):
        shutil.copy(folder / FILES[part], out / FILES[part])
    shutil.copytree(folder / FILES["tokenizer"], out / FILES["tokenizer"], dirs_exist_ok=True)
    _copy_speech(folder / FILES["wav2vec2"], out / FILES["wav2vec2"])
    for source, place, form in ((i2v, NANO_I2V, "full"), (v2v, NANO_V2V, "lora")):
        if source is None:
            continue
        checkpoint = load_checkpoint(source)
        if checkpoint.form != form:
            raise ValueError(f"{source} is a {checkpoint.form} checkpoint; wanted a {form} one.")
        save_safetensors(out / place.relative_to(NANO_FOLDER), half(checkpoint.tensors), shipped(checkpoint.config))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if size > SHIPPED_BYTES:
        raise ValueError(f"{out} has {size / 1e6:.1f} MB; wanted at most {SHIPPED_BYTES / 1e6:.0f}.")
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = module_parser("assemble", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start", help="what training starts from")
    starting.add_argument("folder", type=Path)
    starting.add_argument("--vae", type=Path, required=True, help="folder that train_vae wrote")
    starting.add_argument("--wav2vec2", type=Path, required=True, help="folder that train_speech wrote")
    starting.add_argument("--seed", type=int, default=0)
    shipping = commands.add_parser("ship", help="the trained model in float16")
    shipping.add_argument("folder", type=Path, help="the one that `start` wrote")
    shipping.add_argument("out", type=Path)
    shipping.add_argument("--i2v", type=Path, required=True)
    shipping.add_argument("--v2v", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "start":
        start(given.folder, given.vae, given.wav2vec2, given.seed)
    else:
        print(f"{given.out}: {ship(given.folder, given.out, given.i2v, given.v2v) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
