"""Sizes and conventions of OmniAvatar models, and their `config.json`.

`OmniAvatarConfig` is the architecture, `Conventions` how the model was trained and is sampled (which generation must
follow), `LoRAConfig` the low-rank part of a checkpoint, and `CheckpointConfig` all three as they stand in a
`config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..media.faces.template import LATENTSYNC, Template
from ..media.timeline import MAX_TOKENS, clip_length
from ..system.text_files import parse_json, read_text
from .sampling import Sampling, is_number

LATENT_CHANNELS = 16
WAV2VEC2_BASE_DIM = 10752
"""Width of the audio features: 14 states of 768 numbers of wav2vec2-base."""
LORA_TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")
LoRAKind = Literal["lora", "dora", "lokr", "loha"]
"""How the low-rank part changes a weight; see `lora_changes`."""
LORA_KINDS = get_args(LoRAKind)
AUDIO_WINDOW = 4
"""Rows of audio features (video frames) that make one latent frame."""

IMAGE_SIZES_720 = ((400, 720), (720, 720), (720, 400))
"""Upstream's picture sizes (height, width) for "720"."""
IMAGE_SIZES_1280 = ((720, 720), (528, 960), (960, 528), (720, 1280), (1280, 720))
"""Upstream's picture sizes (height, width) for "1280"."""
IMAGE_SIZES = {"720": IMAGE_SIZES_720, "1280": IMAGE_SIZES_1280}

CHANNEL_LAYOUTS: dict[int, tuple[tuple[str, int], ...]] = {
    33: (("noise", 16), ("reference", 16), ("mask", 1)),
    49: (("noise", 16), ("reference", 16), ("mask", 1), ("masked video", 16)),
    65: (("noise", 16), ("reference", 16), ("mask", 1), ("masked video", 16), ("reference sequence", 16)),
}
"""Input channels of the denoiser in their order, by their number: I2V, V2V, V2V with a reference sequence."""


SIZE_STEP = 16
"""Height and width of all pictures are multiples of this: 8 of the VAE times 2 of the patches."""


LARGEST_SIZE = 2**20
MOST_LAYERS = 1000
MOST_TOKENS = 2**30
"""A damaged file can claim any number; models have far less."""


def _count_fault(name: str, value: Any, most: int, least: int = 1) -> str | None:
    """What is wrong with a number that counts something; None if nothing is."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return None
    return f"{name} is {value!r}, wanted a whole number from {least} to {most}"


def size_fault(height: int, width: int) -> str | None:
    """What is wrong with a size in pixels, with the nearest one that works; None if nothing is."""
    if min(height, width) >= SIZE_STEP and height % SIZE_STEP == 0 and width % SIZE_STEP == 0:
        return None
    near = [max(1, round(side / SIZE_STEP)) * SIZE_STEP for side in (height, width)]
    return f"{height}x{width}, wanted multiples of {SIZE_STEP}, such as {near[0]}x{near[1]}"


def has_masked_video(in_dim: int) -> bool:
    """Whether a model with this number of input channels is V2V."""
    return in_dim >= 49


def has_reference_sequence(in_dim: int) -> bool:
    """Whether such a V2V model also sees a second clip of the same person."""
    return in_dim >= 65


@dataclass(frozen=True, kw_only=True)
class OmniAvatarConfig:
    """Architecture of the denoiser: a Wan 2.1 text-to-video transformer with an audio part.

    Raises:
        ValueError: the sizes do not fit together; the message lists every fault.
    """

    dim: int
    """Width of the tokens."""
    ffn_dim: int
    """Width of the feed-forward layers."""
    num_heads: int
    """Attention heads; dim / num_heads is the head width d, and d // 3 must be even for the rotary embedding."""
    num_layers: int
    """Transformer blocks; the audio acts before blocks 2 .. num_layers // 2."""
    in_dim: int = 33
    """Input channels: 33, 49 or 65 (`CHANNEL_LAYOUTS`)."""
    out_dim: int = LATENT_CHANNELS
    """Output channels, those of the VAE's latents."""
    text_dim: int = 4096
    """Width of the text encoder's output."""
    freq_dim: int = 256
    """Width of the sinusoidal timestep embedding."""
    eps: float = 1e-6
    """Epsilon of the Wan norms (the audio norm's is 1e-5)."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns that make one token."""
    audio_dim: int = WAV2VEC2_BASE_DIM
    """Width of the audio features: hidden size times (layers + 2) of the wav2vec2 model."""
    audio_hidden_size: int = 32
    """Width of the packed audio."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        counts = ("dim", "ffn_dim", "num_heads", "out_dim", "text_dim", "freq_dim", "audio_dim", "audio_hidden_size")
        found = [_count_fault(name, getattr(self, name), LARGEST_SIZE) for name in counts]
        found += [_count_fault("num_layers", self.num_layers, MOST_LAYERS)]
        found += [_count_fault("patch_size", size, LARGEST_SIZE) for size in self.patch_size]
        faults = [fault for fault in found if fault is not None]
        if len(self.patch_size) != 3:
            faults.append(f"patch_size is {list(self.patch_size)}, wanted three numbers")
        if not is_number(self.eps) or self.eps <= 0:
            faults.append(f"eps is {self.eps!r}, wanted a number above 0")
        if faults:
            raise ValueError(f"OmniAvatarConfig: {'; '.join(faults)}.")
        if self.in_dim not in CHANNEL_LAYOUTS:
            faults.append(f"in_dim is {self.in_dim}, wanted one of {sorted(CHANNEL_LAYOUTS)}")
        if self.dim % self.num_heads:
            faults.append(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        elif (self.dim // self.num_heads) // 3 % 2 or (self.dim // self.num_heads) % 2:
            faults.append(f"the head width {self.dim // self.num_heads} must be even, and so must its third")
        if self.num_layers < 4:
            faults.append(f"num_layers is {self.num_layers}, but audio needs at least 4")
        if faults:
            raise ValueError(f"OmniAvatarConfig: {'; '.join(faults)}.")

    @property
    def audio_layers(self) -> range:
        """The blocks before which the audio is added."""
        return range(2, self.num_layers // 2 + 1)

    @property
    def has_masked_video(self) -> bool:
        """Whether this is a V2V model."""
        return has_masked_video(self.in_dim)

    @property
    def has_reference_sequence(self) -> bool:
        """Whether this V2V model also sees a second clip of the same person."""
        return has_reference_sequence(self.in_dim)


PRESETS: dict[str, OmniAvatarConfig] = {
    "1.3B": OmniAvatarConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "14B": OmniAvatarConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
}
"""The published sizes, with 33 input channels."""


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """How a model was trained, as far as generation has to do the same, and how it is sampled.

    Raises:
        ValueError: a value is out of its range.
    """

    leading_audio_rows: int = 1
    """Rows of zeros in front of the first chunk's audio features. With 1, as upstream generates, the first video frame
    (the reference) comes one frame before the sound; with 0, video frame j hears row j."""
    first_frame: Literal["known", "masked"] = "known"
    """V2V: whether frame 0 of a clip is given unmasked (mask 0, kept at every step) or masked like the others."""
    prefix_frames: tuple[int, ...] = (1, 5, 9, 13)
    """Numbers of known frames at the start of a clip that the model has seen; empty when it has seen none."""
    max_tokens: int = MAX_TOKENS
    """Longest clip, in tokens of 16x16 pixels and 4 frames."""
    image_sizes: tuple[tuple[int, int], ...] = IMAGE_SIZES_720
    """Height and width of the pictures it knows; a portrait gets the one whose shape is nearest."""
    aligned: bool = False
    """V2V: whether it takes a source video whole. Else the face is cut out of it, to where `template` has it."""
    template: Template = LATENTSYNC
    """V2V: where the face lies in the pictures that it was trained on."""
    sampling: Sampling = field(default_factory=Sampling)
    """Default settings for generating videos."""

    def __post_init__(self) -> None:
        if isinstance(self.sampling, Mapping):
            object.__setattr__(self, "sampling", Sampling().with_given(**self.sampling))
        if not isinstance(self.sampling, Sampling):
            raise ValueError(f"sampling is {self.sampling!r}, wanted names and values.")
        if isinstance(self.template, Mapping):
            object.__setattr__(self, "template", Template(**self.template))
        if not isinstance(self.template, Template):
            raise ValueError(f"template is {self.template!r}, wanted names and values.")
        if not isinstance(self.aligned, bool):
            raise ValueError(f"aligned is {self.aligned!r}, wanted true or false.")
        object.__setattr__(self, "prefix_frames", tuple(self.prefix_frames))
        object.__setattr__(self, "image_sizes", tuple((height, width) for height, width in self.image_sizes))
        if _count_fault("leading_audio_rows", self.leading_audio_rows, 1, least=0):
            raise ValueError(f"leading_audio_rows is {self.leading_audio_rows}, wanted 0 or 1.")
        if self.first_frame not in ("known", "masked"):
            raise ValueError(f"first_frame is {self.first_frame!r}, wanted 'known' or 'masked'.")
        if fault := _count_fault("max_tokens", self.max_tokens, MOST_TOKENS):
            raise ValueError(f"{fault}.")
        bad = [n for n in self.prefix_frames if _count_fault("", n, LARGEST_SIZE) or clip_length(n) != n]
        if bad:
            raise ValueError(f"prefix_frames has {bad}; every length must be 4n + 1, like 1, 5, 9, 13.")
        sides = [side for size in self.image_sizes for side in size]
        if not sides or any(_count_fault("", side, LARGEST_SIZE) for side in sides):
            raise ValueError(f"image_sizes is {self.image_sizes}, wanted pairs of multiples of {SIZE_STEP}.")
        for fault in (size_fault(*size) for size in self.image_sizes):
            if fault is not None:
                raise ValueError(f"image_sizes has {fault}.")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """The low-rank part of a checkpoint: W' = W + alpha / rank * B A, or what another kind makes of W.

    Raises:
        ValueError: rank or alpha is not positive, or there is no such kind.
    """

    rank: int = 128
    alpha: float = 64.0
    target_modules: tuple[str, ...] = LORA_TARGETS
    kind: LoRAKind = "lora"
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """Parts of modules' names -> other ranks; the last that fits counts. The scale is that of `rank` everywhere."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", tuple(self.target_modules))
        pattern = self.rank_pattern.items() if isinstance(self.rank_pattern, Mapping) else self.rank_pattern
        object.__setattr__(self, "rank_pattern", tuple((str(name), rank) for name, rank in pattern))
        if self.kind not in LORA_KINDS:
            raise ValueError(f"the kind of LoRA is {self.kind!r}, wanted one of {', '.join(LORA_KINDS)}.")
        for name, rank in self.rank_pattern:
            if fault := _count_fault(f"lora_rank of {name}", rank, LARGEST_SIZE):
                raise ValueError(f"{fault}.")
        if fault := _count_fault("lora_rank", self.rank, LARGEST_SIZE):
            raise ValueError(f"{fault}.")
        if not is_number(self.alpha) or self.alpha <= 0:
            raise ValueError(f"lora_alpha is {self.alpha!r}, wanted a number above 0.")

    @property
    def scale(self) -> float:
        """What the product B A is multiplied with."""
        return self.alpha / self.rank

    @property
    def name(self) -> str:
        """The kind as it is written."""
        return {"lora": "LoRA", "dora": "DoRA", "lokr": "LoKr", "loha": "LoHa"}[self.kind]

    @property
    def is_plain(self) -> bool:
        """Whether every layer has an A and a B of one rank, as all programs know them."""
        return self.kind == "lora" and not self.rank_pattern

    def rank_of(self, module: str) -> int:
        """The rank of a module, by its name."""
        found = [rank for name, rank in self.rank_pattern if f".{name}." in f".{module}."]
        return found[-1] if found else self.rank

    def alpha_of(self, module: str) -> float:
        """What gives a module `scale` with its own rank."""
        rank = self.rank_of(module)
        return self.alpha if rank == self.rank else self.scale * rank


@dataclass(frozen=True, kw_only=True)
class BaseLoRA:
    """Another program's LoRA in the weights on which a checkpoint was trained.

    Raises:
        ValueError: a value is of another kind.
    """

    file: str
    """Its name, without folders."""
    sha256: str
    """Of the file."""
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.file, str) or not isinstance(self.sha256, str) or not is_number(self.strength):
            raise ValueError(f"base_loras has {asdict(self)}, wanted file, sha256 and strength.")

    def __str__(self) -> str:
        return f"{self.file}:{self.strength:g} (SHA-256 {self.sha256[:12]}...)"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What a `config.json` beside an OmniAvatar checkpoint says. Fields that a file leaves out are None or the
    default.
    """

    in_dim: int | None = None
    lora: LoRAConfig | None = None
    """None for a checkpoint that holds the full weights."""
    model: OmniAvatarConfig | None = None
    """The whole architecture; only files written by this package have it."""
    conventions: Conventions = field(default_factory=Conventions)
    base_loras: tuple[BaseLoRA, ...] = ()
    """Of a LoRA checkpoint: what else has to be in the base's weights."""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "config.json") -> CheckpointConfig:
        """Read the keys of upstream's config.json and this package's section "omniavatar"; other keys are left alone.

        Raises:
            ValueError: a value does not fit; the message starts with `source`.
        """
        try:
            own = dict(content.get("omniavatar", {}))
            lora = None
            if content.get("train_architecture", "lora") == "lora" and "lora_rank" in content:
                targets = content.get("lora_target_modules", ",".join(LORA_TARGETS))
                rank = content["lora_rank"]
                if fault := _count_fault("lora_rank", rank, LARGEST_SIZE):
                    raise ValueError(fault)
                lora = LoRAConfig(
                    rank=rank,
                    alpha=content.get("lora_alpha", rank / 2),
                    target_modules=tuple(targets.split(",") if isinstance(targets, str) else targets),
                    **own.get("lora", {}),
                )
            conventions = Conventions(**own.get("conventions", {}))
            if "conventions" not in own and not content.get("random_prefix_frames", True):
                conventions = replace(conventions, prefix_frames=(1,))
            model = OmniAvatarConfig(**own["model"]) if "model" in own else None
            base_loras = tuple(BaseLoRA(**one) for one in own.get("base_loras", ()))
            in_dim = content.get("model_config", {}).get("in_dim")
            if in_dim is not None and in_dim not in CHANNEL_LAYOUTS:
                raise ValueError(f"in_dim is {in_dim!r}, wanted one of {sorted(CHANNEL_LAYOUTS)}")
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{source}: {error}") from error
        return cls(in_dim=in_dim, lora=lora, model=model, conventions=conventions, base_loras=base_loras)

    @classmethod
    def load(cls, path: str | Path) -> CheckpointConfig:
        """Read a config.json.

        Raises:
            ValueError: the file is no JSON object or a value does not fit; the message names the file.
        """
        return cls.parse(read_text(path), str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> CheckpointConfig:
        """What the text of a config.json says.

        Raises:
            ValueError: it is no JSON object, or a value does not fit; the message starts with `source`.
        """
        content = parse_json(text, source)
        if not isinstance(content, dict):
            raise ValueError(f"{source} holds a {type(content).__name__}, wanted a JSON object.")
        return cls.from_dict(content, source)

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json that upstream's code and `from_dict` read."""
        model = self.model
        in_dim = model.in_dim if model is not None else self.in_dim
        v2v = in_dim is not None and in_dim >= 49
        content: dict[str, Any] = {
            "model_config": {
                "in_dim": in_dim,
                "audio_hidden_size": model.audio_hidden_size if model is not None else 32,
            },
            "train_architecture": "lora" if self.lora is not None else "full",
        }
        if self.lora is not None:
            content["lora_rank"] = self.lora.rank
            content["lora_alpha"] = self.lora.alpha
            content["lora_target_modules"] = ",".join(self.lora.target_modules)
            content["init_lora_weights"] = "kaiming"
        content["use_audio"] = True
        content["i2v"] = True
        content["random_prefix_frames"] = any(n > 1 for n in self.conventions.prefix_frames)
        if v2v:
            content["v2v"] = True
            content["use_ref_sequence"] = in_dim == 65
        content["omniavatar"] = {"conventions": asdict(self.conventions)}
        if model is not None:
            content["omniavatar"]["model"] = asdict(model)
        if self.lora is not None and not self.lora.is_plain:
            content["omniavatar"]["lora"] = {"kind": self.lora.kind, "rank_pattern": dict(self.lora.rank_pattern)}
        if self.base_loras:
            content["omniavatar"]["base_loras"] = [asdict(one) for one in self.base_loras]
        return content
