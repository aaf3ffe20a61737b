"""The command `omniavatar`.

What a command needs is imported when it runs: `omniavatar --help` answers without importing torch.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .. import __version__
from ..host.versions import UnsupportedHostError
from ..model.files import MODELS
from ..model.lora_keys import SPELLINGS
from ..system.messages import unknown_flags
from ..system.signals import exit_code, interrupts
from .completion import SHELLS
from .console import FAILED, WRONG_INPUT, say, show_log


class _Parser(argparse.ArgumentParser):
    """Errors take one line; the flags and `run` of a command in a module of its own come when it is chosen."""

    def __init__(self, *, module: str | None = None, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)
        self.module = module

    def load(self) -> None:
        """Add the flags of the module."""
        if self.module is not None:
            module = importlib.import_module(self.module, __package__)
            module.add_arguments(self)
            self.set_defaults(run=module.run, config_flags=getattr(module, "config_flags", None))
            self.module = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, with the module's flags."""
        self.load()
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:  # here, not in the parser of all commands, which knows no command's flags
            self.error(unknown_flags(unknown, self))
        return known, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"omniavatar: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Says which versions are installed, in one line, and ends; imports none of the packages."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        versions = [f"omniavatar {__version__}"]
        for name in ("diffsynth", "torch"):
            try:
                versions.append(f"{name} {importlib.metadata.version(name)}")
            except importlib.metadata.PackageNotFoundError:
                versions.append(f"{name} is not installed")
        print(", ".join(versions))
        parser.exit()


def _add_command(
    commands: Any, run: Callable[[argparse.Namespace], int] | str, name: str, text: str
) -> argparse.ArgumentParser:
    """A command that is run by a function, or by the `run` of a module, which has `add_arguments` too."""
    module = run if isinstance(run, str) else None
    parser = commands.add_parser(name, help=text, description=text, module=module)
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.set_defaults(run=run)
    return parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = _Parser(
        prog="omniavatar", description="OmniAvatar, audio-driven avatars on Wan 2.1, with DiffSynth-Studio."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the versions of this, DiffSynth and PyTorch")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_command(commands, ".generate", "generate", "Make a talking video from a portrait or video and speech.")

    _add_command(commands, ".dub", "dub", "Make somebody in a video say something else.")

    convert = _add_command(commands, _run_convert, "convert", "Convert an OmniAvatar checkpoint to another format.")
    convert.add_argument("source", metavar="IN", help="OmniAvatar checkpoint: a folder or a file")
    convert.add_argument(
        "out", metavar="OUT", help="what to write: a folder for omniavatar, a .safetensors file for lora and merged"
    )
    convert.add_argument(
        "--to",
        required=True,
        choices=["omniavatar", "lora", "merged"],
        help="omniavatar: pytorch_model.pt and config.json, as released; lora: a LoRA file for DiffSynth and ComfyUI; "
        "merged: all weights of the transformer in one file",
    )
    convert.add_argument(
        "--lora_form",
        choices=SPELLINGS,
        help="for lora: whose names the file has; all but comfyui, which can be generated with and converted back, "
        "have the low-rank parts alone (default: comfyui)",
    )
    convert.add_argument(
        "--quantize",
        choices=("fp8", "int8"),
        help="for merged: write the transformer's layers in 8 bits, half the size, to generate with (default: no)",
    )
    convert.add_argument(
        "--keep_bf16", default="", help="with --quantize: what stays as it is, as for generate (default: nothing)"
    )
    convert.add_argument("--base", nargs="+", help="for merged: weights of the Wan transformer, files or a folder")
    convert.add_argument(
        "--in_dim",
        type=int,
        choices=[33, 49, 65],
        help="add input channels, up to this number; the new ones start at zero (default: keep the checkpoint's)",
    )
    convert.add_argument(
        "--checkpoint_preset", help="how IN was trained, where no config.json says so: as for generate"
    )

    doctor = _add_command(
        commands, _run_doctor, "doctor", "Check this machine and the model's files, and say how to fix what is wrong."
    )
    doctor.add_argument("--model", choices=MODELS, help="also check the files of this model")
    doctor.add_argument("--models_folder", help="folder with the model's files, as for generate")
    doctor.add_argument("--omniavatar", help="also check this checkpoint")
    doctor.add_argument("--lora", metavar="FILE", help="also tell what this LoRA of another program changes")

    _add_command(
        commands,
        ".prepare",
        "prepare",
        "Make a training set of raw footage: find who speaks, cut, crop, filter.",
    )
    _add_command(commands, "..data.check", "check", "Check training data and list everything that is wrong.")
    _add_command(commands, "..data.precompute", "precompute", "Encode training data once and store it in a cache.")
    _add_command(
        commands,
        ".evaluate",
        "evaluate",
        "Measure videos: lip sync, identity, picture quality, motion; compare two runs.",
    )
    _add_command(commands, ".plan", "plan", "Show which flags train fastest on a GPU, with memory and time per step.")
    _add_command(commands, ".page.command", "page", "Open a page in the browser: talk, dub, train, compare, models.")
    commands.add_parser("train", help="Train a model. The same as `python -m diffsynth_omniavatar.train`.")

    _add_command(
        commands,
        ".demo",
        "demo",
        "Try it all with a small model on the CPU: generate, fine-tune on a new person, generate again.",
    )
    completion = _add_command(
        commands, _run_completion, "completion", "Print a script with which a shell completes commands and flags."
    )
    completion.add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def _with_decibels(argv: Sequence[str]) -> list[str]:
    """`--flag -20dB` as `--flag=-20dB`: a word of its own would be taken for a flag."""
    words: list[str] = []
    for word in argv:
        if re.fullmatch(r"-[\d.]+ ?dB", word, re.IGNORECASE) and words and words[-1].startswith("--"):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; the command line overrides its --config file.

    Raises:
        ValueError: the config file is unreadable or has unknown keys.
    """
    argv = _with_decibels(argv)
    parser = build_parser()
    args = parser.parse_args(argv)
    if getattr(args, "config", None) is None:
        return args
    return parser.parse_args([argv[0], *args.config_flags(args), *argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    if argv[:1] == ["precompute"] and "--trajectories" in argv:
        from ..train import main as train

        return train(["--task", "distill:trajectories", *(word for word in argv[1:] if word != "--trajectories")])
    if argv[:1] == ["train"]:
        from ..train import main as train

        return train(argv[1:])
    try:
        args = parse(argv)
        show_log(debug)
        with interrupts():
            return args.run(args)
    except KeyboardInterrupt as interrupt:
        say(f"interrupted; {interrupt}" if str(interrupt) else "interrupted")
        return exit_code(interrupt)
    except (ValueError, OSError, UnsupportedHostError) as error:
        if debug:
            raise
        say(f"error: {error}")
        return WRONG_INPUT
    except RuntimeError as error:
        if debug or type(error).__name__ != "OutOfMemoryError":
            raise
        say(
            f"error: not enough GPU memory: lower --max_tokens, or keep the weights in CPU memory with "
            f"--stream_weights. {error}"
        )
        return WRONG_INPUT


def _run_convert(args: argparse.Namespace) -> int:
    from ..model.convert import convert

    base = args.base[0] if args.base is not None and len(args.base) == 1 else args.base
    more = {"in_dim": args.in_dim, "lora_form": args.lora_form, "quantize": args.quantize, "keep_bf16": args.keep_bf16}
    more["checkpoint_preset"] = args.checkpoint_preset
    print(f"Wrote {convert(args.source, args.out, args.to, base=base, **more)}.")
    return 0


def _run_doctor(args: argparse.Namespace) -> int:
    from .doctor import examine

    return FAILED if examine(args.model, args.models_folder, args.omniavatar, args.lora) else 0


def _run_completion(args: argparse.Namespace) -> int:
    from ..training.flags import build_parser as training_parser
    from .completion import completion_script

    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        command.load()
    train = training_parser()
    train.prog = f"{parser.prog} train"
    commands.choices["train"] = train
    print(completion_script(parser, commands.choices, args.shell))
    return 0
