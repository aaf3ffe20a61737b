"""Writes golden files of other sizes: `python tests/make_goldens.py FOLDER seed=7 dim=72 A_t=2 ...`.

They are in the format of `tests/goldens`, but what they hold is this package's own result, so they prove nothing of
upstream. The tests that pass with OMNIAVATAR_GOLDENS=FOLDER assume none of the sizes of `tests/goldens`.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import causal_case
import torch
from golden_models import Goldens
from recipe import inp, keyed_randn, weight
from safetensors.torch import save_file
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from diffsynth_omniavatar import host
from diffsynth_omniavatar.model.checkpoint import load_checkpoint
from diffsynth_omniavatar.model.dit import OmniAvatarDiT, state_dict_shapes
from diffsynth_omniavatar.model.lora import adapted_layers
from diffsynth_omniavatar.model.speech_encoder import AudioEncoder, normalise
from diffsynth_omniavatar.model.upgrade import XAVIER_GAIN, apply_checkpoint

RECORDED = Path(__file__).resolve().parent / "goldens"
NOT_OF_THESE_SIZES = ("chunks.json", "resize.json", "resize.safetensors", "scheduler.json", "scheduler.safetensors")
TIMESTEPS = {"t500": 500.0, "t37_5": 37.5}


class NewGoldens(Goldens):
    """The folder that is being filled: the recorded sizes with some of them changed."""

    def __init__(self, folder: Path, seed: int, dims: dict[str, int]) -> None:
        meta = json.loads((RECORDED / "meta.json").read_text())
        if unknown := dims.keys() - meta["dims"].keys():
            raise ValueError(f"{', '.join(sorted(unknown))}: no such size; there are {', '.join(meta['dims'])}")
        folder.mkdir(parents=True)
        for name in NOT_OF_THESE_SIZES:
            shutil.copy(RECORDED / name, folder)
        (folder / "meta.json").write_text(json.dumps({**meta, "seed": seed, "dims": {**meta["dims"], **dims}}))
        super().__init__(folder)

    def write(self, name: str, tensors: dict[str, Tensor] | None = None, facts: dict[str, Any] | None = None) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        if tensors is not None:
            contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
            save_file(contiguous, self.folder / f"{name}.safetensors")
        if facts is not None:
            (self.folder / f"{name}.json").write_text(json.dumps(facts))

    def inputs(self, golden: str, case: str = "A", y_channels: int = 17) -> dict[str, Tensor]:
        """`x`, `y`, `context` and `audio` of a case, B of the latent size B and all others of A."""
        frames, *place = (self.dims[f"{'B' if case == 'B' else 'A'}_{axis}"] for axis in "thw")
        shapes = {
            "x": [1, 16, frames, *place],
            "y": [1, y_channels, frames, *place],
            "context": [1, self.dims["text_tokens"], self.dims["text_dim"]],
            "audio": [1, 4 * frames - 3, self.meta["audio_dim"]],
        }
        return {name: inp(golden, f"{case}/{name}", shape, self.seed) for name, shape in shapes.items()}


def run(dit: OmniAvatarDiT, inputs: dict[str, Tensor], timestep: float) -> Tensor:
    return dit(inputs["x"], torch.tensor([timestep]), inputs["context"], inputs["y"], inputs["audio"])


def stored(inputs: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The inputs as the files hold them: without the audio, which is large."""
    return {f"{prefix}in.{name}": tensor for name, tensor in inputs.items() if name != "audio"}


def write_recipe(golden: NewGoldens) -> None:
    shapes = state_dict_shapes(golden.config())
    order = json.loads((RECORDED / "recipe.json").read_text())["order"]
    tensors = {name: weight(name, shapes[name], golden.seed) for name in order}
    weights = {
        name: {"shape": shapes[name], "sum": t.double().sum().item(), "first": t.flatten()[:4].tolist()}
        for name, t in tensors.items()
    }
    golden.write("recipe", facts={"seed": golden.seed, "order": order, "weights": weights, "state_dict": shapes})


@torch.no_grad()
def write_dit_i2v(golden: NewGoldens) -> None:
    tensors = {}
    for case in "ABCD":
        inputs = {name: value * (0.01 if case == "C" else 1) for name, value in golden.inputs("dit_i2v", case).items()}
        tensors |= stored(inputs, f"{case}.")
        dit = golden.dit()
        if case == "D":
            for name, value in dit.named_parameters():
                if name.endswith((".q.weight", ".q.bias", ".k.weight", ".k.bias")):
                    value.mul_(0.01)
        for name, timestep in TIMESTEPS.items():
            tensors[f"{case}.out.{name}"] = run(dit, inputs, timestep)
        silent = {**inputs, "audio": torch.zeros_like(inputs["audio"])}
        tensors[f"{case}.out.t500.audio_zero"] = run(dit, silent, 500.0)
        if case == "A":
            tensors |= middle_of(dit, inputs)
    layers = list(range(2, golden.dims["num_layers"] // 2 + 1))
    golden.write("dit_i2v", tensors, {"audio_layers": layers, "audio_cond_projs": len(layers)})


def middle_of(dit: OmniAvatarDiT, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the tests look at between the parts, to find where a deviation starts."""
    seen = {}
    dit.audio_proj.register_forward_hook(lambda _, __, out: seen.update({"audio_proj": out[:, :, None, None]}))
    dit.blocks[1].register_forward_hook(lambda _, __, out: seen.update({"blocks.1": out}))
    dit.blocks[2].register_forward_pre_hook(lambda _, given: seen.update({"blocks.2.input": given[0]}))
    run(dit, inputs, 500.0)
    return {f"A.mid.{name}": tensor for name, tensor in seen.items()}


def write_dit_grad(golden: NewGoldens) -> None:
    dit, inputs = golden.dit(), golden.inputs("dit_grad")
    for name in ("x", "audio"):
        inputs[name].requires_grad_()
    out = run(dit, inputs, 500.0)
    loss = out.square().mean()
    loss.backward()
    gradients = {name: value.grad for name, value in dit.named_parameters()}
    tensors = {f"grad.{name}": gradients[name] for name in golden.meta["grad_full"]}
    facts = {
        "loss": loss.item(),
        "timestep": 500.0,
        "input_grad_l2": {name: inputs[name].grad.norm().item() for name in ("x", "audio")},
        "grad_l2": {name: gradient.norm().item() for name, gradient in gradients.items()},
    }
    golden.write("dit_grad", {**stored(inputs), **tensors, "grad_in.x": inputs["x"].grad, "out": out}, facts)


@torch.no_grad()
def write_dit_v2v(golden: NewGoldens) -> None:
    dit, inputs = golden.dit(in_dim=49), golden.inputs("dit_v2v", y_channels=33)
    out = {f"out.{name}": run(dit, inputs, timestep) for name, timestep in TIMESTEPS.items()}
    golden.write("dit_v2v", {**stored(inputs), **out})


@torch.no_grad()
def write_audio_pack(golden: NewGoldens) -> None:
    pack = golden.dit().audio_proj
    sounds = {rows: inp("audio_pack", f"F{rows}", [1, rows, golden.meta["audio_dim"]], golden.seed) for rows in (1, 9)}
    golden.write("audio_pack", {f"out.F{rows}": pack(sound)[:, :, None, None] for rows, sound in sounds.items()})


def write_lora(golden: NewGoldens) -> None:
    config, dims, folder = golden.config(), golden.dims, golden.folder / "lora"
    shapes = state_dict_shapes(config)
    of_audio = [name for name in shapes if name.startswith("audio_")]
    base = {name: shape for name, shape in shapes.items() if name not in of_audio}
    base["patch_embedding.weight"] = [config.dim, 16, *config.patch_size]
    tensors = {name: weight(name, shape, golden.seed + 1).half() for name, shape in base.items()}
    sizes = ("dim", "ffn_dim", "freq_dim", "num_heads", "num_layers", "text_dim")
    (folder / "base").mkdir(parents=True)
    golden.write(
        "lora/base/config",
        facts={**{name: dims[name] for name in sizes}, "in_dim": 16, "out_dim": 16, "eps": config.eps},
    )
    save_file(tensors, folder / "base" / "diffusion_pytorch_model.safetensors")

    recorded = json.loads((RECORDED / "lora" / "config.json").read_text())
    rank = {"lora_rank": dims["lora_rank"], "lora_alpha": dims["lora_alpha"]}
    golden.write("lora/config", facts={**recorded, **rank})
    adapted = adapted_layers(golden.wan(), recorded["lora_target_modules"].split(","))
    trained = {name: shapes[name] for name in (*of_audio, "patch_embedding.weight", "patch_embedding.bias")}
    for name, layer in adapted.items():
        trained[f"{name}.lora_A.default.weight"] = [rank["lora_rank"], layer.in_features]
        trained[f"{name}.lora_B.default.weight"] = [layer.out_features, rank["lora_rank"]]
    weights = {name: weight(name, shape, golden.seed).half() for name, shape in trained.items()}
    torch.save(weights, folder / "pytorch_model.pt")
    write_lora_results(golden, sorted(adapted), list(trained))


def write_lora_results(golden: NewGoldens, adapted: list[str], trained: list[str]) -> None:
    inputs, scale = golden.inputs("lora"), golden.dims["lora_alpha"] / golden.dims["lora_rank"]
    checkpoint = load_checkpoint(golden.folder / "lora")
    dit = apply_checkpoint(golden.wan(), checkpoint, lora="adapters", dtype=torch.float32, device="cpu")
    parameters = {name: value for name, value in dit.named_parameters() if name in trained}
    for value in parameters.values():
        value.requires_grad_()
    loss = run(dit, inputs, 500.0).square().mean()
    loss.backward()
    gradients = {name: value.grad for name, value in parameters.items()}
    tensors = {f"grad.{name}": gradients[name] for name in gradients if name.startswith("blocks.1.self_attn.q.")}
    with torch.no_grad():
        tensors |= {f"out.{name}": run(dit, inputs, timestep) for name, timestep in TIMESTEPS.items()}
        for name, value in parameters.items():
            if "lora_B" in name:
                value.zero_()
        tensors["out.t500.adapters_off"] = run(dit, inputs, 500.0)
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
    facts = {"scale": scale, "loss_t500": loss.item(), "adapted_modules": adapted, "grad_l2": norms}
    golden.write("lora/golden", {**stored(inputs), **tensors}, facts)


def write_expand(golden: NewGoldens) -> None:
    facts = json.loads((RECORDED / "expand.json").read_text())
    shapes = state_dict_shapes(golden.config())
    bound = lambda shape: XAVIER_GAIN * math.sqrt(6 / ((shape[0] + shape[1]) * math.prod(shape[2:])))  # noqa: E731
    patch = shapes["patch_embedding.weight"]
    audio = {name: shape for name, shape in shapes.items() if name.startswith("audio_")}
    new = {
        name: {"shape": shape, "all_zero": False, "uniform_bound": bound(shape), "std_over_bound": 1 / math.sqrt(3)}
        if len(shape) > 1
        else {"shape": shape, "all_zero": True}
        for name, shape in audio.items()
    }
    zero = {name: name != "audio_proj.norm_out.weight" and not name.endswith("norm_out.bias")
            and not (name.startswith("audio_cond_projs") and name.endswith("bias")) for name in audio}  # fmt: skip
    facts |= {
        "patch_new_channels": [patch[0], patch[1] - 16, *patch[2:]],
        "patch_uniform_bound": bound(patch),
        "new_tensors": new,
        "audio_grad_exactly_zero_at_init": zero,
    }
    golden.write("expand", facts=facts)


@torch.no_grad()
def write_wav2vec(golden: NewGoldens) -> None:
    dims, facts = golden.dims, json.loads((RECORDED / "wav2vec.json").read_text())
    facts["config"] |= {
        "hidden_size": dims["w2v_hidden"],
        "num_hidden_layers": dims["w2v_layers"],
        "num_attention_heads": dims["w2v_heads"],
        "intermediate_size": dims["w2v_ffn"],
        "conv_dim": [dims["w2v_conv"]] * 7,
    }
    config = Wav2Vec2Config(**facts["config"])
    model = Wav2Vec2Model._from_config(config, attn_implementation="eager")
    facts["state_dict"] = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: weight(name, shape, golden.seed) for name, shape in facts["state_dict"].items()})
    encoder = AudioEncoder(model)
    sound = keyed_randn("input/wav2vec/waveform", [dims["w2v_samples"]], golden.seed) * 0.1 + 0.02
    tensors = {"in.waveform": sound, "in.normalised": normalise(sound)}
    for suffix, rows in (("", dims["w2v_seq"]), (".padded", dims["w2v_seq"] + 10)):
        hook = lambda _, given, key=f"mid.conv_interpolated{suffix}": tensors.update({key: given[0]})  # noqa: E731
        with encoder.wav2vec2.feature_projection.register_forward_pre_hook(hook):
            tensors[f"out.embeddings{suffix}"] = encoder.encode(sound, rows)[None]
    golden.write("wav2vec", tensors, facts)


class Denoising:
    """The loop of a case, its two or three passes a step, as the README of the format states it."""

    def __init__(self, golden: NewGoldens, case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.case, self.tensors, frames = case, tensors, case["T"]
        self.dit = golden.dit()
        for part in ("weight", "bias"):
            self.dit.get_parameter(f"time_projection.1.{part}").mul_(case.get(f"time_projection_{part}_times", 1.0))
        self.audio = golden.audio("denoise", f"T{frames}/audio", frames)
        reference = tensors[f"in.T{frames}.ref"]
        self.known = tensors[f"in.T{frames}.prefix"] if case["fixed_frame"] > 1 else reference
        mask = torch.ones_like(reference[:, :1]).repeat(1, 1, frames, 1, 1)
        mask[:, :, : case["mask_zero_frames"]] = 0
        self.y = torch.cat([reference.expand(-1, -1, frames, -1, -1), mask], dim=1)
        self.passes, self.caches = 0, []

    def cache(self) -> list[Any] | None:
        """A TeaCache and its decisions, which `predict` adds to."""
        threshold = self.case["tea_cache_l1_thresh"]
        if threshold is None:
            return None
        cache = host.TeaCache(self.case["steps"], threshold, "Wan2.1-T2V-14B")
        check, seen = cache.check, {"skipped": [], "accumulated": []}

        def recorded(*inputs: Any) -> bool:
            seen["skipped"].append(check(*inputs))
            seen["accumulated"].append(float(cache.accumulated_rel_l1_distance))
            return seen["skipped"][-1]

        cache.check = recorded
        self.caches.append(seen)
        return cache

    def predict(self, latents: Tensor, timestep: Tensor, text: str, speaks: bool, cache: Any) -> Tensor:
        self.passes += 1
        audio = self.audio if speaks else torch.zeros_like(self.audio)
        return self.dit(latents, timestep[None], self.tensors[f"in.context_{text}"], self.y, audio, tea_cache=cache)

    def steps(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The guided prediction and the scheduler's result of each step."""
        case, known = self.case, self.known.shape[2]
        text_scale, audio_scale = case["cfg_scale"], case["audio_cfg_scale"]
        sigmas = torch.linspace(1, 0, case["steps"] + 1)
        sigmas = 5 * sigmas / (1 + 4 * sigmas)
        latents = self.tensors[f"in.T{case['T']}.noise"]
        first, last = self.cache(), self.cache()
        for sigma, following in pairwise(sigmas):
            latents = torch.cat([self.known, latents[:, :, known:]], dim=2)
            guided = positive = self.predict(latents, 1000 * sigma, "posi", True, first)
            if text_scale != 1.0:
                negative = self.predict(latents, 1000 * sigma, "nega", False, last)
                guided = negative + text_scale * (positive - negative)
                if text_scale != audio_scale:
                    silent = self.predict(latents, 1000 * sigma, "posi", False, self.cache())
                    guided = negative + text_scale * (silent - negative) + audio_scale * (positive - silent)
            latents = latents + (following - sigma) * guided
            yield guided, latents


@torch.no_grad()
def write_denoise(golden: NewGoldens) -> None:
    dims, facts = golden.dims, json.loads((RECORDED / "denoise.json").read_text())
    text, place = [1, dims["text_tokens"], dims["text_dim"]], [dims["A_h"], dims["A_w"]]
    made = lambda name, *shape: inp("denoise", name, shape, golden.seed)  # noqa: E731
    tensors = {f"in.context_{name}": made(f"context_{name}", *text) for name in ("posi", "nega")}
    for frames in {dims["A_t"], dims["prefix_t"]}:
        prefix = [("prefix", 4)] if frames == dims["prefix_t"] else []
        for name, length in (("noise", frames), ("ref", 1), *prefix):
            tensors[f"in.T{frames}.{name}"] = made(f"T{frames}/{name}", 1, 16, length, *place)
    for name, case in facts.items():
        case["T"] = dims["prefix_t" if case["fixed_frame"] > 1 else "A_t"]
        loop = Denoising(golden, case, tensors)
        for index, (guided, latents) in enumerate(loop.steps()):
            if name == "two_pass":
                tensors |= {"two_pass.pred0": guided} if index == 0 else {}
                tensors[f"two_pass.after_step{index}"] = latents
        tensors[f"{name}.final"] = torch.cat([loop.known, latents[:, :, loop.known.shape[2] :]], dim=2)
        case["forward_passes"] = loop.passes
        if loop.caches:
            case["teacache"] = loop.caches
    golden.write("denoise", tensors, facts)


def write_lipforcing(golden: NewGoldens) -> None:
    dit = golden.dit(in_dim=65).requires_grad_(False)
    golden.write("lipforcing", {"latents": torch.cat(causal_case.made(golden, dit), dim=2)})


def main(folder: str, *settings: str) -> None:
    sizes = {name: int(value) for name, _, value in (setting.partition("=") for setting in settings)}
    golden = NewGoldens(Path(folder), sizes.pop("seed", 0), sizes)
    write_recipe(golden)
    write_dit_i2v(golden)
    write_dit_grad(golden)
    write_dit_v2v(golden)
    write_audio_pack(golden)
    write_lora(golden)
    write_expand(golden)
    write_wav2vec(golden)
    write_denoise(golden)
    write_lipforcing(golden)


if __name__ == "__main__":
    main(*sys.argv[1:])
