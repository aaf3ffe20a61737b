"""How programs spell the keys of LoRA files for Wan 2.1: tables, to read them and to write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

DIFFUSERS = (
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.([qkv])$", r".to_\1"),
    (r"\.o$", ".to_out.0"),
    (r"\.ffn\.0$", ".ffn.net.0.proj"),
    (r"\.ffn\.2$", ".ffn.net.2"),
    (r"\.norm3$", ".norm2"),
    (r"(^head|(\.))\.?modulation$", r"\2scale_shift_table"),
    (r"^(text|time)_embedding\.0$", r"condition_embedder.\1_embedder.linear_1"),
    (r"^(text|time)_embedding\.2$", r"condition_embedder.\1_embedder.linear_2"),
    (r"^time_projection\.1$", "condition_embedder.time_proj"),
    (r"^head\.head$", "proj_out"),
)
"""Wan's names of modules -> diffusers', substituted one after the other."""
PREFIXES = ("base_model.model.", "pipe.dit.", "model.diffusion_model.", "diffusion_model.", "transformer.")
FLAT_PREFIXES = ("lora_unet__", "lora_unet_", "lycoris_")
"""Before names whose dots are underscores."""
ADAPTER_NAME = re.compile(r"(?<=\.)(lora_[AB]|lora_magnitude_vector)\.(?!weight$|bias$)[^.]+")
PARTS = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "lora_B.bias": "up_bias",
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    "dora_scale": "dora",
    "lora_magnitude_vector": "dora",
    "lora_magnitude_vector.weight": "dora",
    "diff": "diff",
    "diff_b": "diff_b",
    "diff_m": "diff_m",
    "w_norm": "diff",
    "b_norm": "diff_b",
    **{f"lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f"hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
}
"""Ending of a key -> what the tensor is."""
ONLY_I2V = re.compile(r"(^|[._])([kv]_img|norm_k_img|img_emb|add_[kv]_proj|norm_added_k|image_embedder)([._]|$)")
OWN_PATCHES = "patch_embedding"
"""OmniAvatar's own replaces Wan's, for which the file was trained."""


def diffusers_name(module: str) -> str:
    """Diffusers' name of one of Wan's modules or single parameters."""
    for pattern, name in DIFFUSERS:
        module = re.sub(pattern, name, module)
    return module


class ModuleNames:
    """Finds a denoiser's modules by the names that other programs give them.

    Args:
        parameters: names of all its parameters.
    """

    def __init__(self, parameters: Iterable[str]) -> None:
        modules = {re.sub(r"\.(weight|bias)$", "", name) for name in parameters}
        self._dotted = {diffusers_name(module): module for module in modules} | {module: module for module in modules}
        self._flat = {name.replace(".", "_"): module for name, module in self._dotted.items()}

    def split(self, key: str) -> tuple[str, str] | None:
        """Module, in Wan's names where it is one of them, and part of a key; None if its ending is unknown."""
        key = ADAPTER_NAME.sub(r"\1", key)
        ending = next((ending for ending in PARTS if key.endswith(f".{ending}")), None)
        if ending is None:
            return None
        module = key.removesuffix(f".{ending}")
        for prefix in PREFIXES:
            module = module.removeprefix(prefix)
        for prefix in FLAT_PREFIXES:
            if module.startswith(prefix):
                name = module.removeprefix(prefix)
                return self._flat.get(name, name), PARTS[ending]
        return self._dotted.get(module, module), PARTS[ending]


@dataclass(frozen=True)
class Spelling:
    """How a program writes a low-rank pair: keys are prefix + module + ending."""

    down: str
    up: str
    prefix: str = ""
    has_alpha: bool = False
    """Whether a key `.alpha` stands beside each pair; else the scale is 1."""
    diffusers: bool = False
    """Whether modules have diffusers' names."""
    flat: bool = False
    """Whether the dots of modules are underscores."""

    def module(self, module: str) -> str:
        """The beginning of the keys of one of Wan's modules."""
        module = diffusers_name(module) if self.diffusers else module
        return self.prefix + (module.replace(".", "_") if self.flat else module)


SPELLINGS = {
    "comfyui": Spelling("lora_A.weight", "lora_B.weight", "diffusion_model.", has_alpha=True),
    "lightx2v": Spelling("lora_down.weight", "lora_up.weight", "diffusion_model.", has_alpha=True),
    "kohya": Spelling("lora_down.weight", "lora_up.weight", "lora_unet_", has_alpha=True, flat=True),
    "diffusers": Spelling("lora_A.weight", "lora_B.weight", "transformer.", diffusers=True),
    "peft": Spelling("lora_A.weight", "lora_B.weight", "base_model.model."),
    "diffsynth": Spelling("lora_A.default.weight", "lora_B.default.weight"),
}
"""The forms that are written."""
