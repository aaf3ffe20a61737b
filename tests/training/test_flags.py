"""Every flag of `python -m diffsynth_omniavatar.train` arrives where it has its effect.

`ROWS` gives each flag a value that is not its default, and says where that must be found when the host's loop prepares
its objects. There it must differ from what the same place holds without the flag. A new flag needs a row, or a place in
`ELSEWHERE`.
"""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_networks import small_syncnet, small_videomae
from synthetic_clips import frame_count, write_table, write_texture
from training_runs import flags, write_inputs

from diffsynth_omniavatar import host
from diffsynth_omniavatar.generation.pipeline import OmniAvatarPipeline
from diffsynth_omniavatar.losses.noise_levels import NoiseLevels
from diffsynth_omniavatar.model.config import IMAGE_SIZES
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.model.quantize import is_quantized
from diffsynth_omniavatar.model.small_family import TINY
from diffsynth_omniavatar.model.speech_encoder import AudioEncoder
from diffsynth_omniavatar.training import first_checks, run
from diffsynth_omniavatar.training.accelerator import OmniAccelerator
from diffsynth_omniavatar.training.flags import UNUSED_HOST_FLAGS, FlagError, build_parser, parse_arguments
from diffsynth_omniavatar.training.validation_metrics import networks_of
from diffsynth_omniavatar.training.validation_samples import ValidationSample

PARSER = {action.dest: action for action in build_parser()._actions if action.dest != "help"}
"""The flags that the installed host and this package have."""
CLASSIC = host.GENERATION == "wan_video_new"


def write_checkpoint(folder: Path, **run: int) -> None:
    """What is looked at of a checkpoint before a model is loaded."""
    folder.mkdir(parents=True)
    torch.save({"step": 3, "run": {**run, "processes": 1}, "rng": []}, folder / "loop.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks and clips, the same under other paths, and what else the flags name."""
    folder = write_inputs(tmp_path_factory.mktemp("flags"))
    other = folder / "other"
    other.mkdir()
    (other / "family").symlink_to(folder / "family")
    rows = [{"video": write_texture(other / f"{n}.mp4", 25, n).name, "prompt": "x"} for n in range(3)]
    write_table(folder / "other.csv", rows)
    mask = Image.new("L", (32, 32), 255)
    mask.paste(0, (0, 16, 32, 32))
    mask.save(folder / "mask.png")
    (folder / "validation.txt").write_text(f"x@@{folder / 'mask.png'}@@{folder / '0.mp4'}\n")
    save_file({"blocks.0.norm3.diff_b": torch.ones(TINY.dit.dim)}, folder / "lora.safetensors")
    for name in ("a.pt", "b.pth", "c.pth"):
        (folder / name).touch()
    write_checkpoint(folder / "step-3", seed=8, gradient_accumulation_steps=3, samples=10)  # of the run "usual"
    write_checkpoint(folder / "runs" / "step-3", seed=7, gradient_accumulation_steps=1, samples=2)
    return folder


class Prepared(Exception):
    """All is made, and the host's loop would begin."""


class Started:
    """A run up to its first step: what it loaded and what the host's loop got."""

    def __init__(self) -> None:
        self.loading: dict[str, Any] = {}
        """What the pipeline was loaded with."""
        self.losses: dict[str, tuple[Any, ...]] = {}
        """What the networks of the losses on frames were loaded with."""
        self.speech_path: str | None = None
        self.quantised: str | None = None

    def launch(self, accelerator: Any, dataset: Any, module: Any, logger: Any, arguments: Any) -> None:
        self.accelerator, self.dataset, self.module, self.logger = accelerator, dataset, module, logger
        self.accumulation = accelerator.gradient_accumulation_steps  # which all Accelerators share
        self.arguments = arguments
        """What the host's loop reads itself."""

    def prepare(self, *objects: Any) -> None:
        self.prepared = objects
        self.optimizer = next(one for one in objects if isinstance(one, torch.optim.Optimizer))
        self.dataloader = next(one for one in objects if isinstance(one, torch.utils.data.DataLoader))
        raise Prepared

    @functools.cached_property
    def sample(self) -> Any:
        return self.dataset[0]

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """What a step's units start from."""
        return self.module.raw_inputs(self.sample)[0]

    @property
    def held_out(self) -> list[str]:
        """The clips of the validation loss."""
        loss = getattr(self.logger.validate, "loss", None)
        return [] if loss is None else [clip.name for clip in loss.dataset.clips]

    @property
    def adapter(self) -> Any:
        """The first layer with LoRA, or None."""
        return next((one for one in self.module.pipe.dit.modules() if hasattr(one, "lora_A")), None)


def start(arguments: list[str]) -> Started:
    """What the command line makes, up to the first step."""
    started = Started()
    loaders = {
        "sync": ("load_syncnet", small_syncnet),
        "lpips": ("load_lpips", torch.nn.Identity),
        "trepa": ("load_videomae", small_videomae),
    }

    def loading(original: Callable[..., Any], *positional: Any, **given: Any) -> Any:
        if not started.loading:  # OmniAvatar's; it calls the host's
            started.loading = given
            if any(config.path is None for config in given["model_configs"]):
                raise Prepared  # would be downloaded
        return original(*positional, **given)

    def naming(module: Any, *paths: Any, quant_options: str | None = None, **given: Any) -> Any:
        started.quantised = quant_options
        return parse(module, *paths, **given)  # without a library for it

    def loading_speech(original: Callable[..., Any], path: Any) -> Any:
        started.speech_path = str(path)
        return original(path)

    def loading_loss(name: str, network: Callable[[], Any], *given: Any) -> Any:
        started.losses[name] = given
        return network()

    launch, parse = host.launch_training_task, host.DiffusionTrainingModule.parse_model_configs

    def launching(*given: Any, args: Any) -> None:
        started.launch(*given, args)
        launch(*given, args=args)

    with pytest.MonkeyPatch.context() as patch:
        for pipeline in (OmniAvatarPipeline, host.WanVideoPipeline):
            original = pipeline.from_pretrained
            wrapped = functools.update_wrapper(functools.partial(loading, original), original)
            patch.setattr(pipeline, "from_pretrained", staticmethod(wrapped))
        patch.setattr(AudioEncoder, "from_pretrained", functools.partial(loading_speech, AudioEncoder.from_pretrained))
        for name, (function, network) in loaders.items():
            patch.setattr(run, function, functools.partial(loading_loss, name, network))
        patch.setattr(host.DiffusionTrainingModule, "parse_model_configs", naming)
        patch.setattr(host, "launch_training_task", launching)
        patch.setattr(first_checks, "LOG_PACKAGES", {})  # not all are installed
        patch.setattr(first_checks, "missing_library", lambda _: None)
        patch.setattr(OmniAccelerator, "prepare", lambda _, *objects, **__: started.prepare(*objects))
        with pytest.raises(Prepared):
            run.train(parse_arguments(arguments))
    return started


@dataclass(frozen=True)
class Row:
    """A flag, a value, and where that arrives."""

    flag: str
    value: str | None
    """None for a switch. {folder} is that of the fixture."""
    where: str | Callable[[Started], Any]
    """Attributes and keys from `Started` on, or a function of it."""
    wanted: Any

    def read(self, started: Started) -> Any:
        """What is there; None where there is nothing."""
        if callable(self.where):
            return self.where(started)
        found: Any = started
        for name in self.where.split("."):
            found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        return found


def model_path(place: int) -> Callable[[Started], Any]:
    return lambda started: started.loading["model_configs"][place].path


def first_setting(name: str) -> Callable[[Started], Any]:
    return lambda started: getattr(started.loading["model_configs"][0], name)


OTHER = "{folder}/other/family"
PATHS = json.dumps([f"{OTHER}/{FILES[name]}" for name in ("dit", "text_encoder", "vae")])
LORA = "{folder}/lora.safetensors"
HUB = "Some/Repository:text_encoder*.pth"
CONVENTIONS = ("dataset.settings.conventions", "module.config.conventions", "module.pipe.conventions")

RUNS: dict[str, tuple[list[str], list[str]]] = {
    "usual": ([], []),
    "epochs": ([], []),
    "offloading": ([], []),
    "v2v": ([], ["--prefix_frames", "1"]),
    "sizes": (["--height", "--width"], ["--max_tokens", "30000"]),
    "fresh": (["--omniavatar_checkpoint"], []),
    "kinds": (["--omniavatar_checkpoint"], []),
    "full": ([], []),
    "losses": ([], ["--prefix_frames", "1", "--min_frames", "17"]),
    "blocks": ([], []),
    "distill": ([], ["--task", "distill"]),
    "hub": (["--model_paths"], []),
    "kept on disk": (["--model_paths"], []),
}
"""Flags that go together -> which of the usual ones are left out for them, and what they need besides."""

ROWS: dict[str, list[Row]] = {
    "usual": [
        Row("dataset_base_path", "{folder}/other", lambda s: str(s.dataset.clips[0].video.parent), "{folder}/other"),
        Row("dataset_metadata_path", "{folder}/other.csv", lambda s: len(s.dataset.clips), 3),
        Row("dataset_repeat", "5", lambda s: len(s.dataset) / len(s.dataset.items), 5),
        Row("dataset_num_workers", "2", "dataloader.num_workers", 2),
        Row("model_paths", PATHS, model_path(0), f"{OTHER}/{FILES['dit']}"),
        Row("omniavatar_checkpoint", f"{OTHER}/omniavatar", model_path(-1), f"{OTHER}/omniavatar"),
        Row("base_lora", f"{LORA}:0.5", lambda s: [one.strength for one in s.module.config.base_loras], [0.5]),
        Row("tokenizer_path", f"{OTHER}/tokenizer", "loading.tokenizer_config.path", f"{OTHER}/tokenizer"),
        Row("wav2vec2_path", f"{OTHER}/wav2vec2", "speech_path", f"{OTHER}/wav2vec2"),
        Row("output_path", "{folder}/out", "logger.output_path", "{folder}/out"),
        Row("learning_rate", "2e-3", "optimizer.defaults.lr", 2e-3),
        Row("weight_decay", "0.3", "optimizer.defaults.weight_decay", 0.3),
        Row("customized_optimizer", "torch.optim.NAdam", lambda s: type(s.optimizer), torch.optim.NAdam),
        Row("find_unused_parameters", None, "accelerator.ddp_handler.find_unused_parameters", True),
        Row("save_steps", "4", "arguments.save_steps", 4),
        Row("gradient_accumulation_steps", "3", "accumulation", 3),
        Row("gradient_accumulation_steps", "3", "accelerator.settings.gradient_accumulation_steps", 3),
        Row("use_gradient_checkpointing", None, "inputs.use_gradient_checkpointing", True),
        Row("enable_tensorboard_log", None, "logger.enable_tensorboard_log", True),
        Row("enable_csv_log", None, "logger.writes_tables", True),
        Row("enable_swanlab_log", None, "logger.enable_swanlab_log", True),
        Row("swanlab_project", "speakers", "logger.swanlab_project", "speakers"),
        Row("enable_wandb_log", None, "logger.enable_wandb_log", True),
        Row("wandb_project", "mouths", "logger.wandb_project", "mouths"),
        Row("height", "48", "sample.height", 48),
        Row("width", "64", "sample.width", 64),
        Row("num_frames", "9", "dataset.recipe.num_frames", 9),
        Row("max_timestep_boundary", "0.75", "inputs.max_timestep_boundary", 0.75),
        Row("min_timestep_boundary", "0.25", "inputs.min_timestep_boundary", 0.25),
        Row("dtype", "bfloat16", "loading.torch_dtype", torch.bfloat16),
        Row("offload_frozen", None, "module.settings.offload_frozen", True),
        *(Row("leading_audio_rows", "0", f"{place}.leading_audio_rows", 0) for place in CONVENTIONS),
        *(Row("prefix_frames", "1,5", f"{place}.prefix_frames", (1, 5)) for place in CONVENTIONS),
        Row("prefix_frames", "1,5", "dataset.recipe.prefix_frames", (1, 5)),
        *(Row("max_tokens", "300", f"{place}.max_tokens", 300) for place in CONVENTIONS),
        Row("max_tokens", "300", "dataset.recipe.max_tokens", 300),
        Row("text_drop_prob", "0.2", "dataset.recipe.text_drop_prob", 0.2),
        Row("audio_drop_prob", "0.3", "dataset.recipe.audio_drop_prob", 0.3),
        Row("prefix_drop_prob", "0.4", "dataset.recipe.prefix_drop_prob", 0.4),
        Row("min_frames", "5", "dataset.recipe.min_frames", 5),
        Row("fixed_length", None, "dataset.recipe.dynamic_length", False),
        Row("lr_audio", "5e-3", lambda s: s.optimizer.param_groups[-1]["initial_lr"], 5e-3),
        Row("loss_weighting", "min_snr:4", "module.weighting.gamma", 4.0),
        Row("batch_size", "2", lambda s: len(s.sample.sources), 2),
        Row("curriculum_frames", "0:9,7:13", "dataset.recipe.curriculum_frames", ((0, 9), (7, 13))),
        Row("max_steps", "40", "accelerator.settings.max_steps", 40),
        Row("warmup_steps", "7", "accelerator.settings.warmup_steps", 7),
        Row("lr_schedule", "cosine", "accelerator.settings.lr_schedule", "cosine"),
        Row("max_grad_norm", "0.25", "accelerator.settings.max_grad_norm", 0.25),
        Row("fp32_master_weights", None, "accelerator.settings.fp32_master_weights", True),
        Row("seed", "8", "accelerator.settings.seed", 8),
        Row("seed", "8", "logger.validate.videos.seed", 8),
        Row("resume", "{folder}/step-3", "accelerator.settings.resume", Path("{folder}/step-3")),
        Row("checkpoints_total_limit", "6", "logger.checkpoints_total_limit", 6),
        Row("log_steps", "9", "logger.log_steps", 9),
        Row("log_noise_levels", "4", "logger.samples.levels", 4),
        Row("log_samples", None, "logger.samples.path", Path("{folder}/out/samples.csv")),
        Row("validation_data", "{folder}/validation.txt", "logger.validate.videos.samples", [
            ValidationSample("x", Path("{folder}/mask.png"), Path("{folder}/0.mp4"))]),
        Row("validation_steps", "11", "logger.validation_steps", 11),
        Row("validation_num_inference_steps", "12", "logger.validate.videos.steps", 12),
        Row("validation_metrics", "synthetic_clips:frame_count", "logger.validate.videos.metrics", [frame_count]),
        *(Row("validate_at_start", None, f"logger.validate.{what}.at_start", True) for what in ("loss", "videos")),
        Row("validation_loss_data", "{folder}/clips.csv", lambda s: s.held_out, ["0.mp4", "1.mp4"]),
        Row("validation_loss_levels", "3", "logger.validate.loss.levels", 3),
        Row("best_by", "validation_loss", "logger.goal.figure", "validation_loss"),
        Row("patience", "13", "logger.patience", 13),
        Row("strict_data", None, "dataset.strict", True),
    ],
    "epochs": [
        Row("num_epochs", "4", "accelerator.settings.max_steps", 8),
        Row("timestep_sampling", "logit_normal:0.5,2,3", "module.noise_levels", NoiseLevels((0.5, 2.0), 3.0)),
        Row("ema_decay", "0.75", "accelerator.settings.ema_decay", 0.75),
        Row("prefix_errors", "noise:0.2,0.7", "module.prefix_errors.deviation", 0.2),
        Row("prefix_errors", "noise:0.2,0.7", "module.prefix_errors.probability", 0.7),
    ],
    "offloading": [
        Row("enable_model_cpu_offload", None, lambda s: len(s.prepared), 3),  # the host then prepares no model
        Row("enable_optimizer_cpu_offload", None, "arguments.enable_optimizer_cpu_offload", True),
        Row("cpu_offload_split_threshold", "5", "arguments.cpu_offload_split_threshold", 5),
    ],
    "v2v": [
        Row("omniavatar_mode", "v2v", "dataset.settings.masked_video", True),
        Row("use_ref_sequence", None, "dataset.settings.in_dim", 65),
        Row("use_ref_sequence", None, "module.pipe.dit.config.in_dim", 65),
        Row("use_ref_sequence", None, "module.config.in_dim", 65),
        *(Row("first_frame", "masked", f"{place}.first_frame", "masked") for place in CONVENTIONS),
        Row("mouth_mask", "{folder}/mask.png", "inputs.omni_mouth_mask", Path("{folder}/mask.png")),
        Row("mouth_weight", "3", "inputs.omni_mouth_weight", 3.0),
    ],
    "sizes": [Row("image_sizes", "1280", f"{place}.image_sizes", IMAGE_SIZES["1280"]) for place in CONVENTIONS],
    "fresh": [
        Row("base_lora", LORA, lambda s: [one.file for one in s.module.config.base_loras], ["lora.safetensors"]),
        Row("lora_rank", "8", "adapter.r.default", 8),
        Row("lora_rank", "8", "module.config.lora.rank", 8),
        Row("lora_alpha", "24", "adapter.scaling.default", 3.0),
        Row("lora_alpha", "24", "module.config.lora.alpha", 24.0),
        Row("lora_target_modules", "q,ffn.0", "module.config.lora.target_modules", ("q", "ffn.0")),
        Row("lora_target_modules", "q,ffn.0", lambda s: adapted(s), {"self_attn.q", "cross_attn.q", "ffn.0"}),
    ],
    "kinds": [
        Row("optimizer", "lion", "accelerator.settings.optimizer", "lion"),
        Row("lora_kind", "dora", "module.config.lora.kind", "dora"),
        Row("lora_rank_pattern", "ffn=6", "module.config.lora.rank_pattern", (("ffn", 6),)),
    ],
    "full": [
        Row("trainable_models", "dit", "module.config.lora", None),
        Row("trainable_models", "dit", lambda s: all(p.requires_grad for p in s.module.pipe.dit.parameters()), True),
    ],
    "losses": [
        Row("use_sync_loss", None, "dataset.settings.sound", True),
        *(Row(f"use_{name}_loss", None, f"module.auxiliary.{name}.__class__.__name__", kind) for name, kind in
          (("sync", "SyncLoss"), ("lpips", "LpipsLoss"), ("trepa", "TrepaLoss"))),
        Row("syncnet_path", "{folder}/a.pt", lambda s: s.losses.get("sync", [None])[0], "{folder}/a.pt"),
        Row("vgg_path", "{folder}/b.pth", lambda s: s.losses.get("lpips", [None])[0], "{folder}/b.pth"),
        Row("videomae_path", "{folder}/c.pth", lambda s: s.losses.get("trepa", [None])[0], "{folder}/c.pth"),
        *(Row("aux_dtype", "float16", lambda s, name=name: s.losses.get(name, [None])[-1], torch.float16)
          for name in ("sync", "trepa")),
        Row("aux_recon_weight", "0.5", "module.auxiliary.recon_weight", 0.5),
        Row("aux_sync_weight", "0.6", "module.auxiliary.sync_weight", 0.6),
        Row("aux_lpips_weight", "0.7", "module.auxiliary.lpips_weight", 0.7),
        Row("aux_trepa_weight", "0.8", "module.auxiliary.trepa_weight", 0.8),
        Row("aux_num_frames", "17", "module.auxiliary.num_frames", 17),
        Row("sync_loss_form", "logits", "module.auxiliary.sync.form", "logits"),
        Row("sync_stride", "5", "module.auxiliary.sync.stride", 5),
        Row("trepa_stride", "6", "module.auxiliary.trepa.stride", 6),
        Row("lpips_window", "7", "module.auxiliary.lpips.window", 7),
        Row("aux_memory", "frame", "module.auxiliary.memory", "frame"),
    ],
    "blocks": [
        Row("dataset_metadata_path", "{folder}/clips.csv:1.5", lambda s: s.dataset.weights, [1.5]),
        Row("activation_memory", "0.5", "module.pipe.dit.runner.activation_memory", 0.5),
        Row("compile", None, "module.pipe.dit.runner.compile", True),
        Row("stream_weights", None, "module.pipe.dit.runner.streamed.__class__.__name__", "StreamedWeights"),
        Row("quantize_attention", None, "module.pipe.dit.runner.attention_fp8", True),
        Row("quantize", "fp8_weights", lambda s: is_quantized(s.module.pipe.dit.blocks[1]), True),
        Row("keep_bf16", "first,self_attn", lambda s: [is_quantized(b) for b in s.module.pipe.dit.blocks[:2]],
            [False, True]),
        Row("fp32_master_weights", None, "module.pipe.dit.runner.moment_bytes", 4),
        Row("use_gradient_checkpointing_offload", None, "inputs.use_gradient_checkpointing_offload", True),
    ],
    "distill": [
        Row("distill_preset", "lip_forcing", "module.config.lora.alpha", 64.0),
        Row("student_steps", "3", "module.sampling.steps", 3),
        Row("student_timesteps", "900,800,500", "module.sampling.timesteps", (900.0, 800.0, 500.0)),
        Row("student_shift", "3", "module.sampling.sigma_shift", 3.0),
        Row("student_solver", "euler", "module.distillation.student_solver", "euler"),
        Row("critic_updates", "2", "module.distillation.critic_updates", 2),
        Row("critic_learning_rate", "3e-3", lambda s: s.optimizer.param_groups[-1]["initial_lr"], 3e-3),
        Row("adam_betas", "0.3,0.4", lambda s: tuple(s.optimizer.param_groups[0]["betas"]), (0.3, 0.4)),
        Row("teacher_cfg", "2", "module.scale", 2.0),
        Row("teacher_cfg_mode", "text", "module.distillation.teacher_cfg_mode", "text"),
        Row("teacher_cfg_range", "1,2", "module.distillation.teacher_cfg_range", (1.0, 2.0)),
        Row("teacher_negative_prompt", "blurred", "module.negative_prompt", "blurred"),
        Row("score_shift", "2", "module.distillation.score_shift", 2.0),
        Row("score_range", "30,40", "module.distillation.score_range", (30.0, 40.0)),
        Row("ema_decay", "0.5", "module.average.decay", 0.5),
    ],
    "hub": [
        Row("model_id_with_origin_paths", HUB, first_setting("model_id"), "Some/Repository"),
        Row("model_id_with_origin_paths", HUB, first_setting("origin_file_pattern"), "text_encoder*.pth"),
        Row("fp8_models", HUB, first_setting("onload_dtype") if not CLASSIC else "", torch.float8_e4m3fn),
    ],
    "kept on disk": [
        Row("model_id_with_origin_paths", HUB, first_setting("model_id"), "Some/Repository"),
        Row("offload_models", HUB, first_setting("onload_device") if not CLASSIC else "", "disk"),
        Row("quant_options", f"{HUB}:some_method", "quantised", f"{HUB}:some_method"),
    ],
}  # fmt: skip

ELSEWHERE = {
    "task": "test_the_tasks_of_the_command_line",
    "reference": "test_the_hosts_own_blocks",
    "config": "test_flags_in_a_file",
    "vram_report": "test_a_report_of_the_memory_needs_a_gpu",
    "profile": "test_a_profile",
    "dry_run": "test_a_dry_run_ends_before_the_loop",
    "debug": "test_debugging_shows_the_error_itself",
    "validation_syncnet_path": "test_weights_of_figures",
    "validation_inception_path": "test_weights_of_figures",
    "validation_fvd_path": "test_weights_of_figures",
    "trajectories": "test_flags_of_distillation_alone",
    "trajectory_steps": "test_flags_of_distillation_alone",
    "student_start": "test_flags_of_distillation_alone",
    "sync_reward": "test_flags_of_distillation_alone",
}
"""Flags whose effect is not found in a place -> the test of them."""


def adapted(started: Started) -> set[str]:
    """The layers of a block that have LoRA."""
    layers = started.module.pipe.dit.blocks[1].named_modules()
    return {name for name, layer in layers if hasattr(layer, "lora_A")}


def without(arguments: list[str], *left_out: str) -> list[str]:
    """The command line without some of its flags and their values."""
    for flag in left_out:
        place = arguments.index(flag)
        arguments = arguments[:place] + arguments[place + 2 :]
    return arguments


def filled(value: Any, folder: Path) -> Any:
    """With the folder's name in the place of {folder}."""
    if isinstance(value, str | Path):
        return type(value)(str(value).replace("{folder}", str(folder)))
    if isinstance(value, list):
        return [filled(one, folder) for one in value]
    if isinstance(value, ValidationSample):
        return ValidationSample(value.prompt, filled(value.picture, folder), filled(value.sound, folder))
    return value


@pytest.fixture(scope="module")
def started(folder: Path) -> Callable[[str], Started]:
    """Gives a run by its name in `RUNS`; "plain" has none of the flags."""

    @functools.cache
    def begun(name: str) -> Started:
        given = {row.flag: row.value for row in ROWS.get(name, []) if row.flag in PARSER}
        left_out, more = RUNS.get(name, ([], []))
        arguments = [*without(flags(folder, folder / "plain"), *left_out), *more]
        arguments.remove("--enable_csv_log")
        for flag, value in given.items():
            arguments += [f"--{flag}"] + ([] if value is None else [filled(value, folder)])
        return start(arguments)

    return begun


CASES = [(name, row) for name, rows in ROWS.items() for row in rows if row.flag in PARSER]


@pytest.mark.parametrize(("name", "row"), CASES, ids=[row.flag for _, row in CASES])
def test_a_flag_arrives(started: Callable[[str], Started], folder: Path, name: str, row: Row) -> None:
    assert row.read(started(name)) == filled(row.wanted, folder) != row.read(started("plain"))


def test_weights_of_figures(folder: Path) -> None:
    data = ["--validation_data", str(folder / "validation.txt"), "--validation_steps", "1"]
    weights = ["--validation_syncnet_path", "a", "--syncnet_path", "b", "--vgg_path", "c"]
    weights += ["--validation_inception_path", "d", "--validation_fvd_path", "e", "--videomae_path", "f"]
    named = ["--validation_metrics", "sync, stable_sync,lpips,synthetic_clips:frame_count,fid,fvd,fvd_videomae"]
    found = networks_of(parse_arguments(flags(folder, folder, *data, *weights, *named)))
    assert (found.syncnet_path, found.stable_syncnet_path, found.vgg_path) == ("a", "b", "c")
    assert (found.inception_path, found.fvd_path, found.videomae_path) == ("d", "e", "f")


def test_flags_of_distillation_alone(folder: Path) -> None:
    """Their effect is in tests/training/test_trajectories.py and test_distill.py."""
    for more, message in [
        (["--sync_reward", "2"], "--sync_reward needs --task distill"),
        (["--trajectories", "x"], "--trajectories needs --task distill"),
        (["--task", "distill", "--trajectory_steps", "3"], "--trajectory_steps is a number from 1 for `precompute"),
        (
            ["--task", "distill:trajectories", "--student_start", "x"],
            "--student_start does not go with --task distill:",
        ),
    ]:
        with pytest.raises(FlagError, match=message):
            parse_arguments(flags(folder, folder / "plain", *more))


def test_every_flag_has_its_place() -> None:
    named = {row.flag for rows in ROWS.values() for row in rows} | ELSEWHERE.keys() | UNUSED_HOST_FLAGS.keys()
    assert PARSER.keys() <= named
    if not CLASSIC:
        assert named - PARSER.keys() == {"audio_processor_config"}  # a flag of DiffSynth 1.1.9
    assert all(test in globals() for test in ELSEWHERE.values())


def test_the_help_shows_each_flag_but_those_that_are_refused() -> None:
    shown = build_parser().format_help()
    for flag, action in PARSER.items():
        assert action.help
        assert (flag in UNUSED_HOST_FLAGS) == (f"\n  --{flag} " not in shown and f"\n  --{flag}\n" not in shown), flag


@pytest.mark.parametrize("flag", [flag for flag in UNUSED_HOST_FLAGS if flag in PARSER])
def test_a_flag_of_the_host_without_meaning_is_refused(folder: Path, flag: str) -> None:
    value = [] if PARSER[flag].nargs == 0 else ["5"]
    with pytest.raises(FlagError, match=f"--{flag} has no meaning here: "):
        parse_arguments([*flags(folder, folder / "plain"), f"--{flag}", *value])


@pytest.mark.parametrize("place", ["f", "f/run", "f/run/3"])
def test_an_output_path_that_is_a_file_is_refused(folder: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "f").write_text("a file")
    with pytest.raises(FlagError, match=r"--output_path .*f is a file; give a folder"):
        parse_arguments(flags(folder, tmp_path / place))


@pytest.mark.parametrize("more", [[], ["--lora_alpha", "24"]])
def test_a_fresh_lora_trains_with_the_scale_that_its_file_says(folder: Path, more: list[str]) -> None:
    arguments = flags(folder, folder / "plain", "--lora_rank", "8", *more)
    begun = start(without(arguments, "--omniavatar_checkpoint"))
    lora = begun.module.config.lora
    assert begun.adapter.scaling["default"] == lora.alpha / lora.rank == (3.0 if more else 0.5)


def test_the_latest_checkpoint_of_the_output_path_is_resumed(folder: Path) -> None:
    for way in ("latest", "auto"):
        begun = start(flags(folder, folder / "runs", "--resume", way, "--max_steps", "9"))
        assert begun.accelerator.settings.resume == folder / "runs" / "step-3"
    fresh = start(flags(folder, folder / "nothing there", "--resume", "auto", "--max_steps", "9"))
    assert fresh.accelerator.settings.resume is None


def test_the_hosts_own_blocks(folder: Path) -> None:
    begun = start(flags(folder, folder / "plain", "--compile", "--stream_weights", "--reference"))
    assert begun.module.pipe.dit.runner is None


def test_flags_in_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "flags.json").write_text(json.dumps({"max_grad_norm": 0.5, "prefix_drop_prob": 0.7}))
    begun = start(flags(folder, folder / "plain", "--config", str(tmp_path / "flags.json")))
    assert begun.accelerator.settings.max_grad_norm == 0.5 and begun.dataset.recipe.prefix_drop_prob == 0.7


def test_the_tasks_of_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(run, "run_data_process", lambda args, _: called.append(args.task))
    if CLASSIC:
        with pytest.raises(FlagError, match=r"--task sft:data_process needs DiffSynth 2\.x"):
            parse_arguments(flags(folder, folder / "plain", "--task", "sft:data_process"))
        return
    run.train(parse_arguments(flags(folder, folder / "plain", "--task", "sft:data_process")))
    assert called == ["sft:data_process"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_report_of_the_memory_needs_a_gpu(folder: Path) -> None:
    with pytest.raises(ValueError, match="--vram_report needs a CUDA device"):
        run.train(parse_arguments(flags(folder, folder / "plain", "--vram_report")))


def test_a_profile(folder: Path) -> None:
    begun = start(flags(folder, folder / "profiled", "--profile", "--max_steps", "3"))
    assert begun.logger.on_step is not None and (folder / "profiled" / "profile").is_dir()
    with pytest.raises(FlagError, match="--profile leaves 2 steps out, and this run has 2"):
        run.train(parse_arguments(flags(folder, folder / "plain", "--profile", "1", "--max_steps", "2")))


def test_a_dry_run_ends_before_the_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "launch_training_task", None)
    run.train(parse_arguments(flags(folder, folder / "plain", "--dry_run")))


def test_debugging_shows_the_error_itself(folder: Path) -> None:
    wrong = flags(folder, folder / "plain", "--mouth_weight", "3")
    assert run.main(wrong) == 2
    with pytest.raises(FlagError, match="--mouth_weight needs --omniavatar_mode v2v"):
        run.main([*wrong, "--debug"])


def test_the_seed_draws_the_weights_of_fresh_audio_modules(started: Callable[[str], Started], folder: Path) -> None:
    """`started("fresh")` has the seed 7."""
    usual = without(flags(folder, folder / "plain", "--lora_rank", "8"), "--omniavatar_checkpoint")
    seven, again, eight = started("fresh"), start(usual), start([*usual, "--seed", "8"])
    weights = [begun.module.pipe.dit.audio_proj.proj.weight for begun in (seven, again, eight)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
