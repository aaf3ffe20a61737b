"""Models and inputs of the golden files, built from their recipe."""

import json
from pathlib import Path
from typing import Any

import torch
from recipe import inp, weight
from safetensors.torch import load_file

from diffsynth_omniavatar import host
from diffsynth_omniavatar.model.config import OmniAvatarConfig
from diffsynth_omniavatar.model.dit import OmniAvatarDiT


class Goldens:
    """The golden folder: sizes, files and the denoiser of the recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = self.json("meta")
        self.seed: int = self.meta["seed"]
        self.dims: dict[str, int] = self.meta["dims"]

    def json(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def config(self, in_dim: int = 33) -> OmniAvatarConfig:
        sizes = {
            name: self.dims[name] for name in ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "text_dim")
        }
        return OmniAvatarConfig(
            **sizes,
            in_dim=in_dim,
            out_dim=self.meta["out_dim"],
            eps=self.meta["eps"],
            patch_size=tuple(self.meta["patch_size"]),
            audio_dim=self.meta["audio_dim"],
            audio_hidden_size=self.meta["audio_hidden_size"],
        )

    def weights(self, in_dim: int = 33) -> dict[str, torch.Tensor]:
        shapes = dict(self.json("recipe")["state_dict"])
        patch = shapes["patch_embedding.weight"]
        shapes["patch_embedding.weight"] = [patch[0], in_dim, *patch[2:]]
        return {name: weight(name, shape, self.seed) for name, shape in shapes.items()}

    def dit(self, in_dim: int = 33, **replaced: torch.Tensor) -> OmniAvatarDiT:
        dit = OmniAvatarDiT(self.config(in_dim))
        dit.load_state_dict({**self.weights(in_dim), **replaced}, strict=True)
        return dit.eval()

    def wan(self) -> host.WanModel:
        """The base of the LoRA checkpoint: a Wan transformer without audio, from its files."""
        base = self.folder / "lora" / "base"
        sizes = json.loads((base / "config.json").read_text())
        names = ("dim", "in_dim", "ffn_dim", "out_dim", "text_dim", "freq_dim", "eps", "num_heads", "num_layers")
        wan = host.WanModel(**{name: sizes[name] for name in names}, patch_size=(1, 2, 2), has_image_input=False)
        tensors = load_file(base / "diffusion_pytorch_model.safetensors")
        wan.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
        return wan

    def audio(self, golden: str, name: str, latent_frames: int) -> torch.Tensor:
        return inp(golden, name, [1, 4 * latent_frames - 3, self.meta["audio_dim"]], self.seed)


def relative_deviation(actual: torch.Tensor, wanted: torch.Tensor) -> float:
    """max|a - b| / max|b|, the measure of the goldens' tolerances."""
    assert actual.shape == wanted.shape, (actual.shape, wanted.shape)
    return ((actual.float() - wanted).abs().max() / wanted.abs().max()).item()
