"""What each patch in patches/ cures, as seen in a copy of the installed DiffSynth.

`observe_all` looks at every defect, first in a copy as released, then in a copy with that patch alone. Each function
imports the copy of diffsynth that is on trial; a process of its own can do that.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from patch_files import installed_version

RELEASED = "as released"
IMPORTS_ANEW = "import-transformers-5"
"""What is seen while diffsynth is imported; the other cases share one import of it as released."""
CLASSIC = installed_version() == "1.1.9"


def wan() -> Any:
    return importlib.import_module(f"diffsynth.pipelines.{'wan_video_new' if CLASSIC else 'wan_video'}")


def dit_module() -> Any:
    return importlib.import_module("diffsynth.models.wan_video_dit")


class Samples:
    """A dataset of numbers, to be trained on by `train`."""

    load_from_cache = False

    def __init__(self, numbers: list[float]):
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> float:
        return self.numbers[index]


def train(dataset: Any, accumulate: int = 1) -> list[tuple[float, float]]:
    """Train one weight w on the losses w*x by the host's launcher; (gradient, learning rate / asked) of each update."""
    from accelerate import Accelerator
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    updates = []

    def record(optimizer: Any, *_: Any) -> None:
        group = optimizer.param_groups[0]
        updates.append((group["params"][0].grad.item(), group["lr"] / 1e-3))

    runner, model = launcher()
    logger = SimpleNamespace(**{f"on_{event}_end": lambda *_, **__: None for event in ("step", "epoch", "training")})
    options = {"learning_rate": 1e-3, "num_workers": 0, "num_epochs": 1}
    hook = register_optimizer_step_pre_hook(record)
    try:
        if CLASSIC:
            runner.launch_training_task(dataset, model, logger, gradient_accumulation_steps=accumulate, **options)
        else:
            accelerator = Accelerator(gradient_accumulation_steps=accumulate)
            runner.launch_training_task(accelerator, dataset, model, logger, **options)
    finally:
        hook.remove()
    return updates


def launcher() -> tuple[Any, Any]:
    """The host's module of launchers, and a training module of one weight."""
    import torch

    runner = importlib.import_module("diffsynth.trainers.utils" if CLASSIC else "diffsynth.diffusion.runner")

    class Model(runner.DiffusionTrainingModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1, bias=False)

        def forward(self, x: Any) -> Any:
            return self.layer.weight.sum() * (x if isinstance(x, float) else 1.0)

    return runner, Model()


def accumulate_gradients() -> Any:
    return [gradient for gradient, _ in train(Samples([1.0, 2.0, 3.0, 4.0]), accumulate=4)]


def constant_lr() -> Any:
    return [round(rate, 6) for _, rate in train(Samples([1.0] * 7))]


def cached_noise() -> Any:
    flux = importlib.import_module("diffsynth.pipelines.flux_image_new").FluxImagePipeline
    clip, image = torch_randn(1, 4, 3, 4, 4), torch_randn(1, 4, 4, 4)
    frame = clip[:, :, :1].clone()
    return {
        "wan": same_noise_twice(wan().WanVideoPipeline, noise=clip.clone()),
        "wan, first frame": same_noise_twice(wan().WanVideoPipeline, noise=clip, first_frame_latents=frame),
        "flux": same_noise_twice(flux, noise=image),
    }


def torch_randn(*shape: int) -> Any:
    import torch

    return torch.randn(shape)


def same_noise_twice(pipeline: Any, **cached: Any) -> Any:
    """Per frame (or image row), whether two training steps on one cached sample, latents zero, see the same noise."""
    import torch

    scheduler = importlib.import_module("diffsynth.schedulers").FlowMatchScheduler()
    scheduler.set_timesteps(1000, training=True)
    directions = []

    def model_fn(latents: Any, **_: Any) -> Any:
        directions.append(torch.nn.functional.normalize(latents.transpose(1, 2).flatten(2), dim=-1))
        return latents

    pipe = SimpleNamespace(scheduler=scheduler, torch_dtype=torch.float32, device="cpu", model_fn=model_fn)
    for _ in range(2):
        pipeline.training_loss(pipe, input_latents=torch.zeros_like(cached["noise"]), **cached)
    return ((directions[0] * directions[1]).sum(dim=-1) > 0.999)[0].tolist()


def import_transformers_5() -> Any:
    """Import the package while transformers.modeling_utils lacks the name, as it does from transformers 5 on."""
    import transformers.modeling_utils as modeling_utils

    missing = object()
    name = modeling_utils.__dict__.pop("PretrainedConfig", missing)
    try:
        importlib.import_module("diffsynth")
    finally:
        if name is not missing:
            modeling_utils.PretrainedConfig = name  # type: ignore[attr-defined]
    return "imported"


def save_on_all_ranks() -> Any:
    """Two ranks save; each result says whether both took part in gathering the weights."""
    logger_class = importlib.import_module("diffsynth.trainers.utils").ModelLogger

    def save(method: str, *args: Any) -> str:
        gather, gathered, results = threading.Barrier(2), set(), {}

        def get_state_dict(index: int) -> None:
            gather.wait()
            gathered.add(index)

        def rank(index: int) -> None:
            model = SimpleNamespace(export_trainable_state_dict=lambda weights, remove_prefix: weights)
            accelerator = SimpleNamespace(
                is_main_process=index == 0,
                wait_for_everyone=lambda: None,
                get_state_dict=lambda _: get_state_dict(index),
                unwrap_model=lambda _: model,
                save=lambda *_, **__: None,
            )
            try:
                with tempfile.TemporaryDirectory() as folder:
                    getattr(logger_class(folder), method)(accelerator, model, *args)
                results[index] = "done"
            except threading.BrokenBarrierError:
                results[index] = "waits for ever"
            if index not in gathered:
                gather.abort()  # this rank will never come

        threads = [threading.Thread(target=rank, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results[0]

    return [save("save_model", "step-1.safetensors"), save("on_epoch_end", 0)]


def dataset_without_cache() -> Any:
    from PIL import Image

    utils = importlib.import_module("diffsynth.trainers.utils")
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (32, 32)).save(f"{folder}/x.png")
        Path(folder, "metadata.json").write_text(json.dumps([{"image": "x.png"}]))
        options = {"metadata_path": f"{folder}/metadata.json", "height": 32, "width": 32, "data_file_keys": ("image",)}
        return [len(train(kind(folder, **options))) for kind in (utils.ImageDataset, utils.VideoDataset)]


def head_batch() -> Any:
    """Whether the head gives two samples what it gives each of them alone."""
    import torch

    head = dit_module().Head(dim=8, out_dim=4, patch_size=(1, 2, 2), eps=1e-6)
    x, t = torch.randn(2, 3, 8), torch.randn(2, 8)
    alone = torch.cat([head(x[i : i + 1], t[i : i + 1]) for i in range(2)])
    return torch.allclose(head(x, t), alone, atol=1e-6)


def prompt_polarity() -> Any:
    import torch

    class Stop(Exception):
        pass

    module, seen = wan(), []

    def refine(prompt: str, positive: Any) -> str:
        seen.append([prompt, positive])
        return prompt

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    pipe = module.WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.units = [module.WanVideoUnit_PromptEmbedder(), SimpleNamespace(take_over=True, process=stop)]
    pipe.prompter.refiners.append(refine)
    pipe.prompter.tokenizer = tokenize
    pipe.prompter.fetch_models(lambda ids, mask: torch.ones(*ids.shape, 2))
    with contextlib.suppress(Stop):
        pipe(prompt="yes", negative_prompt="no", cfg_scale=5.0)
    return seen


def tokenize(prompts: Any, **_: Any) -> Any:
    """One token per letter, padded to 8."""
    import torch

    prompts = [prompts] if isinstance(prompts, str) else prompts
    mask = torch.tensor([[int(i < len(prompt)) for i in range(8)] for prompt in prompts])
    return mask.clone(), mask


def prompt_batch() -> Any:
    """How many tokens of each of two prompts are left."""
    import torch

    def encoder(ids: Any, mask: Any) -> Any:
        return torch.ones(*ids.shape, 2)

    prompts = ["five!", "two"]
    if CLASSIC:
        prompter = importlib.import_module("diffsynth.prompters").WanPrompter()
        prompter.tokenizer = tokenize
        prompter.fetch_models(encoder)
        encoded = [prompter.encode_prompt(prompts, device="cpu")]
    else:
        pipe = SimpleNamespace(tokenizer=tokenize, text_encoder=encoder, device="cpu")
        units = (wan().WanVideoUnit_PromptEmbedder(), wan().WanVideoUnit_VAP())
        encoded = [unit.encode_prompt(pipe, prompts) for unit in units]
    return [[int(embedding.any(dim=-1).sum()) for embedding in embeddings] for embeddings in encoded]


def tiny_dit(**options: Any) -> Any:
    import torch

    sizes = {"dim": 24, "in_dim": 4, "ffn_dim": 16, "out_dim": 4, "text_dim": 8, "freq_dim": 16, "eps": 1e-6}
    model = dit_module().WanModel(
        **sizes, patch_size=(1, 2, 2), num_heads=2, num_layers=2, **{"has_image_input": False, **options}
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


def wan_forward() -> Any:
    """Whether forward equals the pipeline's model function."""
    import torch

    dit = tiny_dit()
    inputs = {"timestep": torch.tensor([300.0]), "context": torch.randn(1, 5, 8)}
    latents = torch.randn(1, 4, 3, 4, 6)
    return torch.equal(dit(latents, **inputs), wan().model_fn_wan_video(dit=dit, latents=latents, **inputs))


def camera_batch() -> Any:
    """Batch size after patchify, and whether each sample is what it is alone."""
    import torch

    dit = tiny_dit(add_control_adapter=True, in_dim_control_adapter=2)
    latents, camera = torch.randn(2, 4, 3, 4, 6), torch.randn(2, 2, 3, 32, 48)
    alone = torch.cat([dit.patchify(latents[i : i + 1], camera[i : i + 1]) for i in range(2)])
    both = dit.patchify(latents, camera)
    merged_cfg = dit.patchify(latents, camera[:1])
    return [len(both), len(merged_cfg), len(both) == 2 and torch.allclose(both, alone, atol=1e-6)]


def s2v_checkpointing() -> Any:
    """Largest relative difference of a gradient with checkpointing from the same gradient without."""
    import torch

    model = importlib.import_module("diffsynth.models.wan_video_dit_s2v").WanS2VModel
    sizes = {"dim": 48, "in_dim": 16, "ffn_dim": 32, "out_dim": 16, "text_dim": 8, "freq_dim": 16, "eps": 1e-6}
    audio = {"cond_dim": 16, "audio_dim": 8, "num_audio_token": 2, "audio_inject_layers": [0, 2]}
    dit = model(**sizes, **audio, patch_size=(1, 2, 2), num_heads=2, num_layers=3)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = {
        "latents": torch.randn(1, 16, 3, 8, 8),
        "timestep": torch.tensor([500.0]),
        "context": torch.randn(1, 5, 8),
        "audio_embeds": torch.randn(1, 25, 8, 8),
        "motion_latents": torch.randn(1, 16, 19, 8, 8),
        "s2v_pose_latents": None,
    }

    def gradients(checkpointing: bool) -> list[Any]:
        dit.zero_grad()
        wan().model_fn_wans2v(dit, **inputs, use_gradient_checkpointing=checkpointing).square().mean().backward()
        return [parameter.grad.clone() for parameter in dit.parameters() if parameter.grad is not None]

    without, with_ = gradients(False), gradients(True)
    return max(float((a - b).norm() / (a.norm() + 1e-12)) for a, b in zip(without, with_, strict=True))


def vap_timestep() -> Any:
    """Whether the output head gets the time embedding of the timestep that is being denoised."""
    import torch

    dit = tiny_dit(has_image_input=True)
    mot = importlib.import_module("diffsynth.models.wan_video_mot").MotWanModel
    vap = mot(mot_layers=(0,), dim=24, num_heads=2, ffn_dim=16, freq_dim=16, text_dim=8, in_dim=4).requires_grad_(False)
    seen = []
    dit.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    timestep, clip = torch.tensor([300.0]), torch.randn(1, 257, 1280)
    text = {"context": torch.randn(1, 5, 8), "context_vap": torch.randn(1, 5, 8)}
    latents = {"latents": torch.randn(1, 4, 3, 4, 6), "vap_hidden_state": torch.randn(1, 4, 3, 4, 6)}
    wan().model_fn_wan_video(
        dit=dit, vap=vap, timestep=timestep, clip_feature=clip, vap_clip_feature=clip, **text, **latents
    )
    own = dit.time_embedding(dit_module().sinusoidal_embedding_1d(dit.freq_dim, timestep))
    return torch.equal(seen[0], own)


def tiny_vae() -> Any:
    import torch

    module = importlib.import_module("diffsynth.models.wan_video_vae")

    class TinyVAE(module.WanVideoVAE):  # type: ignore[name-defined]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.scale = [torch.zeros(16), torch.ones(16)]
            self.model = module.VideoVAE_(dim=8, z_dim=16).eval().requires_grad_(False)
            self.upsampling_factor, self.z_dim = 8, 16

    return TinyVAE()


def vae_tile_batch() -> Any:
    """Whether the same video has the same latents in the first and in the second place of a batch."""
    import torch

    video = torch.rand(1, 3, 1, 64, 64).expand(2, -1, -1, -1, -1)
    first, second = tiny_vae().encode(video, "cpu", tiled=True, tile_size=(4, 4), tile_stride=(2, 2))
    return torch.equal(first, second)


def vae_free_cache() -> Any:
    """Number of feature maps that are still held after a video went through the VAE."""
    import torch

    vae = tiny_vae()
    vae.decode(vae.encode(torch.rand(1, 3, 5, 16, 16), "cpu"), "cpu")
    return sum(isinstance(item, torch.Tensor) for item in vae.model._feat_map + vae.model._enc_feat_map)


def round_pixels() -> Any:
    """How many of the 256 grey levels change on their way to a tensor and back."""
    import numpy as np
    import torch
    from PIL import Image

    module = "diffsynth.utils" if CLASSIC else "diffsynth.diffusion.base_pipeline"
    pipe = importlib.import_module(module).BasePipeline(device="cpu", torch_dtype=torch.float32)
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    back = np.array(pipe.vae_output_to_image(pipe.preprocess_image(Image.fromarray(levels))))
    return int((back != levels)[..., 0].sum())


def data_process_args() -> Any:
    from accelerate import Accelerator

    runner, model = launcher()
    with tempfile.TemporaryDirectory() as folder:
        logger = SimpleNamespace(output_path=folder)
        runner.launch_data_process_task(Accelerator(), Samples([1.0, 2.0]), model, logger, num_workers=0)
        return sorted(file.name for file in Path(folder).rglob("*.pth"))


# By patch: what to look at, whether it shows the defect, whether it shows none. Errors are strings "Type: message".
Judge = Callable[[Any], bool]
CASES: dict[str, tuple[Callable[[], Any], Judge, Judge]] = {
    # The mean gradient is 2.5; the last micro-batch alone contributes at most 4 / 4.
    "accumulate-gradients": (accumulate_gradients, lambda seen: 0 < seen[0] <= 1.0, lambda seen: seen == [2.5]),
    "cached-noise": (
        cached_noise,
        lambda seen: seen == {"wan": [True] * 3, "wan, first frame": [True] * 3, "flux": [True] * 4},
        lambda seen: seen == {"wan": [False] * 3, "wan, first frame": [True, False, False], "flux": [False] * 4},
    ),
    "camera-batch": (camera_batch, lambda seen: seen == [1, 1, False], lambda seen: seen == [2, 2, True]),
    "constant-lr": (
        constant_lr,
        lambda seen: seen == [0.333333] * 5 + [1.0] * 2,
        lambda seen: seen == [1.0] * 7,
    ),
    "data-process-args": (
        data_process_args,
        lambda seen: str(seen).startswith("UnboundLocalError"),
        lambda seen: seen == ["0.pth", "1.pth"],
    ),
    "dataset-without-cache": (
        dataset_without_cache,
        lambda seen: str(seen).startswith("AttributeError") and "load_from_cache" in seen,
        lambda seen: seen == [1, 1],
    ),
    "head-batch": (head_batch, lambda seen: seen is False, lambda seen: seen is True),
    IMPORTS_ANEW: (
        import_transformers_5,
        lambda seen: seen.startswith("ImportError: cannot import name 'PretrainedConfig'"),
        lambda seen: seen == "imported",
    ),
    "prompt-batch": (
        prompt_batch,
        lambda seen: all(lengths == [3, 3] for lengths in seen),
        lambda seen: all(lengths == [5, 3] for lengths in seen),
    ),
    "prompt-polarity": (
        prompt_polarity,
        lambda seen: seen == [["yes", None], ["no", None]],
        lambda seen: seen == [["yes", True], ["no", False]],
    ),
    "round-pixels": (round_pixels, lambda seen: seen > 0, lambda seen: seen == 0),
    # Recomputation repeats the same operations on the same numbers, so the gradients are equal.
    "s2v-checkpointing": (
        s2v_checkpointing,
        lambda seen: seen > 1e-3 if isinstance(seen, float) else seen.startswith("RuntimeError"),
        lambda seen: seen == 0.0,
    ),
    "save-on-all-ranks": (
        save_on_all_ranks,
        lambda seen: seen == ["waits for ever"] * 2,
        lambda seen: seen == ["done"] * 2,
    ),
    "vae-free-cache": (vae_free_cache, lambda seen: seen > 0, lambda seen: seen == 0),
    "vae-tile-batch": (vae_tile_batch, lambda seen: seen is False, lambda seen: seen is True),
    "vap-timestep": (vap_timestep, lambda seen: seen is False, lambda seen: seen is True),
    "wan-forward": (wan_forward, lambda seen: str(seen).startswith("ValueError"), lambda seen: seen is True),
}


def unload() -> None:
    """Forget the diffsynth that was imported."""
    for module in [module for module in sys.modules if module.split(".")[0] == "diffsynth"]:
        del sys.modules[module]


def observe(name: str, root: Path) -> Any:
    """What CASES[name] sees in the diffsynth below `root`."""
    import torch
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        seen = CASES[name][0]()
    except Exception as error:  # any error can be what the defect shows
        seen = f"{type(error).__name__}: {error}"
    finally:
        sys.path.remove(str(root))
    if (package := sys.modules.get("diffsynth")) is not None:
        assert Path(str(package.__file__)).is_relative_to(root)
    return seen


def observe_all(folder: Path, results: Path) -> None:
    """Write what is seen as released and with each patch alone; `folder` holds one copy for each."""
    names = [copy.name for copy in sorted(folder.iterdir()) if copy.name != RELEASED]
    before, after = {}, {}
    unload()
    for name in sorted(names, key=lambda name: name != IMPORTS_ANEW):  # that one first
        before[name] = observe(name, folder / RELEASED)
    for name in names:
        unload()
        after[name] = observe(name, folder / name)
    results.write_text(json.dumps({name: [before[name], after[name]] for name in names}, indent=1))
