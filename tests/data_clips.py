"""Clips that cost nothing, prepared tensors, and samples drawn of them, for the tests of data/."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffsynth_omniavatar.data.cache_index import CACHE_FORMAT, text_key
from diffsynth_omniavatar.data.clips import BadSampleError, ClipFacts, ClipSettings, ClipSource
from diffsynth_omniavatar.data.dataset import OmniAvatarDataset
from diffsynth_omniavatar.data.recipe import Recipe
from diffsynth_omniavatar.system.tensor_files import write_safetensors
from diffsynth_omniavatar.training.loader import seed_cpu_generators

SETTINGS = ClipSettings(height=32, width=32)
RECIPE = Recipe(max_tokens=200)


@dataclass(frozen=True, kw_only=True)
class FakeClip(ClipSource):
    """Costs nothing to load; its latents are its reference's place."""

    name: str
    frames: int = 41
    height: int = 32
    width: int = 32
    broken: bool = False
    raises: Exception | None = None
    """What it raises wherever it is read."""
    faults: tuple[str, ...] = ()

    def inspect(self, settings: ClipSettings, recipe: Recipe, deep: bool = False) -> ClipFacts:
        if self.raises is not None:
            raise self.raises
        if self.faults:
            raise BadSampleError(self.name, self.faults)
        longest = recipe.longest(self.frames, self.height, self.width)
        return ClipFacts(
            height=self.height, width=self.width, frames=self.frames, longest=longest, live=frozenset(), group=()
        )

    def load(self, facts: ClipFacts, settings: ClipSettings, num_frames: int, reference: float) -> dict[str, Any]:
        if self.raises is not None:
            raise self.raises
        if self.broken:
            raise ValueError("broken in the middle")
        return {"reference_latents": torch.tensor([int(reference * self.frames)])}


def fakes(count: int, **changes: Any) -> list[ClipSource]:
    return [FakeClip(name=f"clip{index}", **changes) for index in range(count)]


def make(clips: list[ClipSource], recipe: Recipe = RECIPE, **options: Any) -> OmniAvatarDataset:
    return OmniAvatarDataset(clips, settings=options.pop("settings", SETTINGS), recipe=recipe, **options)


def draw(dataset: OmniAvatarDataset, index: int = 0, seed: int = 0) -> Any:
    seed_cpu_generators(seed)
    return dataset[index]


def fields(sample: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(sample).items() if value is not None}


def assert_same(first: Any, second: Any) -> None:
    assert fields(first).keys() == fields(second).keys()
    for name, value in fields(first).items():
        other = getattr(second, name)
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype and torch.equal(value, other), name
        elif name == "waveforms":
            assert all(torch.equal(*pair) for pair in zip(value, other, strict=True))
        else:
            assert value == other, name


def near(count: int, total: int, probability: float) -> bool:
    """Within five standard deviations."""
    return abs(count - total * probability) < 5 * (total * probability * (1 - probability)) ** 0.5


C, D, TOKENS = 12, 6, 8


def numbered(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def fill(folder: Path, frames: int = 21, audio: torch.dtype = torch.float32) -> None:
    """All tensors of a prepared directory, for 32x32 pixels."""
    count = (frames + 3) // 4
    for file, offset in (("vae_latents.pt", 0), ("vae_latents_mask_all.pt", 1)):
        latents = {
            "input_latents": numbered(16, count, 4, 4),
            "masked_latents": numbered(16, count, 4, 4) + (1 + offset),
        }
        torch.save({**latents, "metadata": {"height": 32}}, folder / file)
    rows = {"audio_emb": numbered(frames + 9, C, dtype=audio), "metadata": {"fps": 25, "feature_dim": C}}
    torch.save(rows, folder / "audio_emb_omniavatar.pt")
    torch.save(numbered(1, TOKENS, D), folder / "text_emb.pt")
    torch.save({"ref_sequence_latents": numbered(16, count, 4, 4) + 5}, folder / "ref_latents.pt")


def write_cache(folder: Path, frames: int = 9, references: int = 2) -> dict[str, Any]:
    """A complete cache of two clips of 32x32 pixels, as `precompute` writes them; gives its index."""
    texts = {text_key(prompt): [TOKENS, D] for prompt in ("", "Speaks.")}
    names = ("one.mp4", "two.mp4")
    index: dict[str, Any] = {
        "format": CACHE_FORMAT,
        "complete": True,
        "settings": {"in_dim": 33, "audio_dim": C, "text_dim": D, "size": [32, 32]},
        "texts": texts,
        "clips": [
            {
                **{"name": name, "key": f"key{number}", "text": text_key("Speaks."), "prompt": "Speaks."},
                **{"frames": frames, "num_frames": frames, "references": references, "height": 32, "width": 32},
                **{"mask": None, "sources": []},
            }
            for number, name in enumerate(names)
        ],
    }
    for number in range(len(names)):
        tensors = {
            "input_latents": numbered(16, (frames + 3) // 4, 4, 4),
            "reference_latents": numbered(references, 16, 1, 4, 4),
            "audio_features": numbered(frames, C),
            "waveform": numbered(640 * frames, dtype=torch.float32),
        }
        write_safetensors(folder / "clips" / f"key{number}.safetensors", tensors)
    for key in texts:
        write_safetensors(folder / "text" / f"{key}.safetensors", {"context": numbered(5, D)})
    write_safetensors(folder / "silence.safetensors", {str(n): numbered(n, C) for n in range(5, frames + 1, 4)})
    (folder / "index.json").write_text(json.dumps(index))
    return index
