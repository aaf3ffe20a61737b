"""A training run: what the flags say becomes pipeline, data, losses and validation, and the host's loop runs."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedDataParallelKwargs

from .. import host
from ..data.clips import ClipSettings, ClipSource
from ..data.dataset import OmniAvatarDataset
from ..data.encode import encoder_pipeline
from ..data.flags import DTYPES
from ..data.recipe import Recipe
from ..data.tables import read_clips
from ..generation.pipeline import OmniAvatarPipeline
from ..losses.decode import choose_memory
from ..losses.lpips import LpipsLoss, load_lpips
from ..losses.mel import WINDOW
from ..losses.sync import SyncLoss
from ..losses.syncnet import load_syncnet
from ..losses.trepa import TrepaLoss, load_videomae
from ..media.timeline import transformer_tokens
from ..model.blocks.attention_fp8 import check_attention_fp8
from ..model.blocks.gpu_memory import expandable_segments
from ..model.blocks.memory_plan import BlockShape
from ..model.checkpoint import read_config, weight_files
from ..model.config import IMAGE_SIZES, Conventions
from ..model.quantize import check_quantize, is_quantized
from ..model.small_family import register_family
from ..system.atomic import write_text_atomically
from ..system.messages import counted
from ..system.output_folder import reserved
from ..system.progress import StderrLines
from ..system.signals import exit_code, interrupts
from .accelerator import OmniAccelerator, trained_parameters
from .auxiliary import AuxiliaryLosses
from .base_lora import check_same_base
from .best import Goal, Progress
from .callbacks import TrainingLogger, find_latest, refuse_later_checkpoints, refuse_old_best
from .data_process import DataProcessAccelerator, process_data
from .distill import DistillationModule
from .distill_flags import TRAJECTORIES, distill_settings, distills
from .distill_setup import make_distillation
from .ending import error_code
from .first_checks import check_files, check_processes, check_same_clips
from .flags import FlagError, parse_arguments
from .load import base_configs, channels_of, check_new_lora, load_training_pipeline, loading
from .log_table import read_table
from .loop_state import check_same_parameters, check_same_run, check_same_settings, load_state, run_of
from .memory_report import predicted_rows, size_text
from .module import OmniAvatarTrainingModule, trainable_parameters
from .prefix_errors import OFF
from .profiling import SKIPPED, profiled
from .recipe_flags import curriculum, with_weight
from .settings import LoopSettings, StepSettings, steps_in_epochs
from .step_samples import SAMPLES_FILE, StepSamples
from .trajectories import TrajectoryDataset, write_trajectories
from .validation_setup import make_validations, read_validation

logger = logging.getLogger(__name__)

AnyDataset = OmniAvatarDataset | TrajectoryDataset


def conventions_of(args: argparse.Namespace) -> Conventions:
    """Those of the checkpoint that training starts from, or else frames that hear their own row; flags override."""
    given: dict[str, Any] = {
        "first_frame": args.first_frame,
        "leading_audio_rows": args.leading_audio_rows,
        "prefix_frames": args.prefix_frames,
        "max_tokens": args.max_tokens,
        "image_sizes": IMAGE_SIZES.get(args.image_sizes) if args.height is None else ((args.height, args.width),),
    }
    if args.first_frame == "masked" and args.prefix_frames is None:
        given["prefix_frames"] = ()
    start = Conventions(leading_audio_rows=0)
    if args.omniavatar_checkpoint is not None:
        start = read_config(weight_files(args.omniavatar_checkpoint)).conventions
    conventions = dataclasses.replace(start, **{name: value for name, value in given.items() if value is not None})
    if args.omniavatar_mode == "v2v" and conventions.first_frame == "known" and not conventions.prefix_frames:
        raise FlagError("--first_frame known makes frame 0 known: --prefix_frames must name at least 1.")
    if args.prefix_errors != OFF and max(conventions.prefix_frames, default=0) < 2:
        raise FlagError("--prefix_errors is for prefixes of 5 frames and more: --prefix_frames has none.")
    return conventions


def named_clips(args: argparse.Namespace) -> list[ClipSource]:
    """The clips that the flags name."""
    return [clip for _, clips in named_tables(args) for clip in clips]


def named_tables(args: argparse.Namespace) -> list[tuple[float, list[ClipSource]]]:
    """The tables that the flags name: their weights and clips."""
    named = args.dataset_metadata_path or [args.dataset_base_path]
    return [(weight, read_clips(path, args.dataset_base_path)) for path, weight in map(with_weight, named)]


def recipe_of(args: argparse.Namespace, conventions: Conventions) -> Recipe:
    """The random choices that the flags ask for; distillation drops nothing."""
    drops = ("text_drop_prob", "audio_drop_prob", "prefix_drop_prob")
    return Recipe(
        prefix_frames=conventions.prefix_frames,
        **{name: 0.0 if distills(args) else getattr(args, name) for name in drops},
        max_tokens=conventions.max_tokens,
        num_frames=args.num_frames,
        min_frames=args.min_frames,
        curriculum_frames=curriculum(args.curriculum_frames),
        dynamic_length=not args.fixed_length and args.task != TRAJECTORIES,
    )


def clip_settings(args: argparse.Namespace, conventions: Conventions) -> ClipSettings:
    """What the model takes of a clip."""
    return ClipSettings(
        in_dim=channels_of(args),
        conventions=conventions,
        height=args.height,
        width=args.width,
        mouth_mask=None if args.mouth_mask is None else Path(args.mouth_mask),
        sound=args.use_sync_loss or args.sync_reward is not None,
        portraits=distills(args),
    )


def build_dataset(args: argparse.Namespace, conventions: Conventions) -> AnyDataset:
    """The samples that the flags name. In a distributed run every process must call it."""
    if args.trajectories is not None:
        levels = distill_settings(args).sampling(conventions.sampling).sigmas
        return TrajectoryDataset(Path(args.trajectories), levels, args.dataset_repeat)
    tables = named_tables(args)
    clips = [clip for _, clips in tables for clip in clips]
    check_same_clips(clips)
    return OmniAvatarDataset(
        clips,
        settings=clip_settings(args, conventions),
        recipe=recipe_of(args, conventions),
        batch_size=args.batch_size,
        repeat=args.dataset_repeat,
        tables=[(weight, len(clips)) for weight, clips in tables],
        strict=args.strict_data,
    )


def check_networks(datasets: Sequence[AnyDataset], pipe: OmniAvatarPipeline, decodes: bool) -> None:
    """Raise FlagError if the samples, or losses that decode frames, need a network that was not loaded."""
    needed = {name: purpose for dataset in reversed(datasets) for name, purpose in dataset.needed_networks().items()}
    if decodes:
        needed["vae"] = "the losses on decoded frames"
    flags = {"speech_encoder": "--wav2vec2_path", "text_encoder": "--model_paths", "vae": "--model_paths"}
    missing = [
        f"{name} for {purpose} (add it with {flags[name]}, or put it into a cache)"
        for name, purpose in needed.items()
        if getattr(pipe, name, None) is None
    ]
    if missing:
        raise FlagError(f"training needs {'; '.join(missing)}.")


def load_auxiliary(args: argparse.Namespace, device: torch.device) -> AuxiliaryLosses | None:
    """The losses on decoded frames that the flags ask for, with their networks on the device."""
    if not (args.use_sync_loss or args.use_lpips_loss or args.use_trepa_loss):
        return None
    dtype = getattr(torch, args.aux_dtype)
    sync = trepa = lpips = None
    if args.use_sync_loss:
        sync = SyncLoss(load_syncnet(args.syncnet_path, device, dtype), args.sync_loss_form, args.sync_stride)
    if args.use_lpips_loss:
        lpips = LpipsLoss(load_lpips(args.vgg_path, device), args.lpips_window)
    if args.use_trepa_loss:
        trepa = TrepaLoss(load_videomae(args.videomae_path, device, dtype), args.trepa_stride)
    return AuxiliaryLosses(
        sync=sync,
        lpips=lpips,
        trepa=trepa,
        recon_weight=args.aux_recon_weight,
        sync_weight=args.aux_sync_weight,
        lpips_weight=args.aux_lpips_weight,
        trepa_weight=args.aux_trepa_weight,
        num_frames=args.aux_num_frames,
        memory=choose_memory(args.aux_memory, device),
    )


def check_lengths(dataset: AnyDataset, window: int, losses: Sequence[str]) -> None:
    """Raise FlagError if samples can be shorter than the frames that losses look at together."""
    if isinstance(dataset, OmniAvatarDataset) and dataset.recipe.shortest < window:
        raise FlagError(
            f"samples can have {dataset.recipe.shortest} frames, but {' and '.join(losses)} look at {window} at once: "
            "--min_frames 17"
        )


def print_plan(lines: Iterable[tuple[str, Any]]) -> None:
    """A table of names and values."""
    for name, value in lines:
        print(f"{name:<24} {value}")


def plan_of(
    args: argparse.Namespace,
    dataset: AnyDataset,
    module: OmniAvatarTrainingModule,
    settings: LoopSettings,
    processes: int,
) -> list[tuple[str, Any]]:
    """What `--dry_run` prints."""
    height, width = args.height, args.width
    size = f"{height}x{width}" if height else "of the clips, among the trained sizes"
    trained = trainable_parameters(module)
    others = sum(value.nbytes for name, value in module.named_parameters() if not name.startswith("pipe.dit."))
    frames = args.num_frames or "up to max_tokens"
    tokens = module.config.conventions.max_tokens
    if height and args.num_frames:
        tokens = transformer_tokens(args.num_frames, height, width)
    extra = module.extra_memory | ({"average of the weights": 4 * trained} if settings.ema_decay else {})
    config = module.pipe.dit.config
    memory = predicted_rows(
        config,
        module.counted_lora,
        module.settings,
        BlockShape.of(config, batch=args.batch_size, tokens=tokens, element_size=DTYPES[args.dtype].itemsize),
        module.pipe.dit.runner,
        fp32_master_weights=settings.fp32_master_weights,
    )
    return [
        ("mode", f"{args.omniavatar_mode}, {module.config.in_dim} channels"),
        ("samples", len(dataset)),
        ("size", size),
        ("frames", frames),
        ("losses", ", ".join(module.loss_parts) or "flow"),
        ("transformer tokens", tokens),
        ("processes", processes),
        (
            "batch",
            f"{args.batch_size} x accumulation {settings.gradient_accumulation_steps} x "
            f"{counted(processes, 'process', 'processes')}",
        ),
        ("optimizer steps", settings.max_steps),
        ("trainable parameters", f"{trained:,}"),
        *([] if settings.optimizer == "adamw" else [("optimizer", f"{settings.optimizer}; below is AdamW's memory")]),
        ("encoders", size_text(others)),
        *memory,
        *((name, f"{size_text(size)}, not counted in the peak") for name, size in extra.items()),
        *([("quantised", "not counted")] if is_quantized(module.pipe.dit) else []),
    ]


def resume_folder(args: argparse.Namespace) -> Path | None:
    """The checkpoint that the run goes on from.

    Raises:
        FlagError: there is none where there must be one.
    """
    if args.resume not in ("latest", "auto"):
        return None if args.resume is None else Path(args.resume)
    latest = find_latest(args.output_path)
    if latest is None and args.resume == "latest":
        raise FlagError(
            f"--resume latest: {args.output_path} holds no checkpoint step-N to go on from; "
            "--resume auto starts from the beginning if there is none"
        )
    return latest


def check_resume(args: argparse.Namespace, checkpoint: Path | None) -> int:
    """The step that the run starts at, after a look at the checkpoint and the output path.

    Raises:
        ValueError: the checkpoint is damaged, or the output path holds later ones, or those of another run.
    """
    step = 0
    if checkpoint is not None:
        step = load_state(checkpoint)["step"]
        Progress.read(checkpoint)
    refuse_later_checkpoints(args.output_path, step)
    if args.resume is None:  # with --resume auto it is of this run, which was killed before its first step-N
        refuse_old_best(args.output_path)
    for table in ("loss.csv", "validation.csv"):
        if args.enable_csv_log and Path(args.output_path, table).is_file():
            read_table(Path(args.output_path, table))
    return step


def tell_start(args: argparse.Namespace, settings: LoopSettings, step: int) -> None:
    """Say where the run starts."""
    if settings.resume is not None:
        logger.info("goes on from %s: step %d of %d is done", settings.resume, step, settings.max_steps)
    elif args.resume is not None:
        logger.info("starts from the beginning: %s has no checkpoint", args.output_path)


def _given(args: argparse.Namespace, settings: type) -> dict[str, Any]:
    """What the flags say of the fields of a dataclass."""
    names = [field.name for field in dataclasses.fields(settings)]
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _loop_settings(args: argparse.Namespace, samples: int, processes: int, resume: Path | None) -> LoopSettings:
    steps = args.max_steps or steps_in_epochs(args.num_epochs, samples, processes, args.gradient_accumulation_steps)
    given = _given(args, LoopSettings) | {"max_steps": steps, "resume": resume}
    if distills(args):  # which averages the student alone
        given["ema_decay"] = 0.0
    return LoopSettings(**given)


def _save_arguments(args: argparse.Namespace) -> None:
    values = {name: value for name, value in sorted(vars(args).items()) if name not in ("config", "dry_run")}
    text = yaml.safe_dump({name: list(v) if isinstance(v, tuple) else v for name, v in values.items()})
    write_text_atomically(Path(args.output_path) / "config.yaml", text)


def _logger_options(args: argparse.Namespace) -> dict[str, Any]:
    names = (
        "enable_tensorboard_log",
        "enable_csv_log",
        "enable_wandb_log",
        "enable_swanlab_log",
        "wandb_project",
        "swanlab_project",
    )
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def run_data_process(args: argparse.Namespace, conventions: Conventions) -> None:
    """`--task sft:data_process`: write a cache to the output path."""
    accelerator = DataProcessAccelerator()
    settings = clip_settings(args, conventions)
    with loading(args):
        pipe = encoder_pipeline(
            settings,
            model_configs=base_configs(args, accelerator.device),
            tokenizer_config=None if args.tokenizer_path is None else host.ModelConfig(path=args.tokenizer_path),
            wav2vec2=args.wav2vec2_path,
            device=str(accelerator.device),
            dtype=DTYPES[args.dtype],
        )
    report = process_data(
        pipe,
        named_clips(args),
        settings=settings,
        recipe=recipe_of(args, conventions),
        accelerator=accelerator,
        args=args,
    )
    if accelerator.is_main_process:
        for name, reason in report.faults:
            logger.warning("left out: %s: %s", name, reason)
        print(f"{args.output_path}: {counted(report.encoded, 'clip')} encoded, {counted(len(report.faults), 'fault')}")


def run_trajectories(args: argparse.Namespace, conventions: Conventions) -> None:
    """`--task distill:trajectories`: write trajectories of the teacher to the output path."""
    accelerator, dataset = OmniAccelerator(LoopSettings(max_steps=1)), build_dataset(args, conventions)
    module = build_module(args, conventions, [dataset], accelerator).to(accelerator.device)
    assert isinstance(module, DistillationModule) and isinstance(dataset, OmniAvatarDataset)
    count = write_trajectories(
        module,
        dataset,
        Path(args.output_path),
        steps=args.trajectory_steps,
        seed=args.seed,
        share=accelerator.share(len(dataset)),
        on_file=lambda path: logger.info("made %s", path),
    )
    print(f"{args.output_path}: {counted(count, 'trajectory', 'trajectories')} of {len(dataset)} made, the others kept")


def train(args: argparse.Namespace) -> None:
    """Run what the flags say."""
    processes = check_processes()
    check_files(args)
    register_family()
    conventions = conventions_of(args)
    check_new_lora(args)
    is_writer = PartialState().is_main_process and not args.dry_run
    with reserved(Path(args.output_path)) if is_writer else nullcontext():
        if args.task == "sft:data_process":
            run_data_process(args, conventions)
        elif args.task == TRAJECTORIES:
            run_trajectories(args, conventions)
        else:
            _train(args, conventions, processes)


def _train(args: argparse.Namespace, conventions: Conventions, processes: int) -> None:
    resume = resume_folder(args)
    step = check_resume(args, resume)
    held_out = read_validation(
        args, clip_settings(args, conventions), recipe_of(args, conventions), PartialState().device
    )
    dataset = build_dataset(args, conventions)
    if PartialState().is_main_process:
        held_out.tell_trained(dataset.clips)
    settings = _loop_settings(args, len(dataset), processes, resume)
    if args.profile is not None and settings.max_steps - step <= SKIPPED:
        raise FlagError(
            f"--profile leaves {SKIPPED} steps out, and this run has {settings.max_steps - step}: more steps"
        )
    if resume is not None:
        check_same_base(resume, args)
        state = load_state(resume)
        check_same_run(resume, state, run_of(settings, processes, dataset))
        check_same_settings(resume, state, settings)
    has_unused = args.find_unused_parameters or distills(args)  # of student and critic one has a loss at a time
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=has_unused)]
    accelerator = OmniAccelerator(settings, kwargs_handlers=handlers)
    datasets = [dataset] if held_out.dataset is None else [dataset, held_out.dataset]
    module = build_module(args, conventions, datasets, accelerator)
    validate = make_validations(args, held_out, module, accelerator)
    if accelerator.is_main_process:
        print_plan(plan_of(args, dataset, module, settings, processes))
        tell_start(args, settings, step)
    if args.dry_run:
        return
    _check_parameters(resume, module)
    if resume is not None:
        accelerator.load_bank(resume)
    if accelerator.is_main_process:  # only now, when nothing can be refused any more
        _save_arguments(args)
    table = Path(args.output_path, SAMPLES_FILE) if args.log_samples else None
    samples = StepSamples(args.log_noise_levels or 0, table, step, accelerator.is_main_process)
    training_logger = TrainingLogger(
        accelerator,
        module,
        args.output_path,
        trained_tensors=module.trained_tensors,
        export=module.export,
        checkpoints_total_limit=args.checkpoints_total_limit,
        validate=validate,
        validation_steps=args.validation_steps,
        goal=None if args.best_by is None else Goal.parse(args.best_by),
        patience=args.patience,
        log_steps=args.log_steps,
        loss_parts=module.loss_parts,
        samples=samples,
        **_logger_options(args),
    )
    module.on_sample = samples.add
    args.num_epochs = accelerator.epochs_to_run(len(dataset))
    profiles = args.profile is not None and accelerator.is_main_process
    with (
        training_logger.bar,
        profiled(args.output_path, args.profile) if profiles else nullcontext() as training_logger.on_step,
    ):
        host.launch_training_task(accelerator, dataset, module, training_logger, args=args)


def build_module(
    args: argparse.Namespace,
    conventions: Conventions,
    datasets: Sequence[AnyDataset],
    accelerator: OmniAccelerator,
) -> OmniAvatarTrainingModule:
    """Load the networks, and make of them what the host's loop trains.

    Args:
        args, conventions, accelerator: of the run.
        datasets: what it trains on, then others whose samples it encodes.
    """
    on_cpu = accelerator.device.type == "cpu"  # where several processes have one each by number, which no loader knows
    waits = (args.stream_weights or args.quantize) and not args.reference
    if args.quantize:
        if accelerator.is_sharded:
            raise ValueError("--quantize does not go with sharded weights: it is for one process, or DDP.")
        check_quantize(args.quantize, (), accelerator.device)
    if args.quantize_attention:
        check_attention_fp8(accelerator.device)
    place = torch.device("cpu") if on_cpu or waits else accelerator.device
    with loading(args):
        pipe, config = load_training_pipeline(args, conventions, place)
    pipe.device = accelerator.device
    auxiliary = load_auxiliary(args, accelerator.device)
    if auxiliary is not None:
        check_lengths(datasets[0], auxiliary.shortest, auxiliary.names)
    if args.sync_reward is not None:
        check_lengths(datasets[0], WINDOW, ["--sync_reward"])
    check_networks(datasets, pipe, auxiliary is not None or args.sync_reward is not None)
    settings = StepSettings(**_given(args, StepSettings))
    if distills(args):
        module: OmniAvatarTrainingModule = make_distillation(
            args, pipe, config, settings, [clip for one in datasets for clip in one.clips], accelerator
        )
    else:
        module = OmniAvatarTrainingModule(pipe, config, settings, auxiliary)
        accelerator.bank = None if module.prefix_errors is None else module.prefix_errors.bank
    module.on_parts = accelerator.report_parts
    return module


def _check_parameters(resume: Path | None, module: OmniAvatarTrainingModule) -> None:
    """Raise ValueError if the checkpoint is of a model of which something else trains."""
    if resume is None or "trained" not in (state := load_state(resume)):
        return
    check_same_parameters(resume, state, trained_parameters(module))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 for wrong input, 1 for a failure, 128 + n for the signal n."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[StderrLines()])
    expandable_segments()
    try:
        with interrupts():
            train(parse_arguments(argv))
    except KeyboardInterrupt as interrupt:
        said = f"interrupted; {interrupt}; ".replace("; ; ", "; ")
        print(f"diffsynth_omniavatar.train: {said}--resume auto goes on from the newest checkpoint", file=sys.stderr)
        return exit_code(interrupt)
    except Exception as error:
        code = error_code(error)
        if code is None or "--debug" in (sys.argv if argv is None else argv):
            raise
        print(f"diffsynth_omniavatar.train: error: {error}", file=sys.stderr)
        return code
    return 0
