"""The commands and flags in README and docs/ exist on this host."""

import argparse
import functools
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.training.flag_texts import HOST_HELP
from diffsynth_omniavatar.training.flags import build_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
OF_OTHERS = {"--build-arg", "--quiet", "--version"}
"""Flags of Docker and accelerate, and one that is no command's."""
PLACES = re.compile(r"(?<![\w./-])(benchmarks|examples|tests|docs)/[\w./-]+\.(py|sh|yaml|txt|ipynb)")


@functools.cache
def flags() -> dict[str, set[str]]:
    """Command -> its flags."""
    (commands,) = (action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.choices.values():
        command.load()
    found = {name: set(command._option_string_actions) for name, command in commands.choices.items()}
    return {**found, "train": set(build_parser()._option_string_actions)}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands_of(page: str) -> list[list[str]]:
    """The shell commands in a page's blocks of bash, as words."""
    blocks = "".join(block for language, block in FENCE.findall(text_of(page)) if language == "bash")
    return [shlex.split(line, comments=True) for line in blocks.replace("\\\n", " ").splitlines()]


def omniavatar_words(words: list[str]) -> list[str]:
    """What follows `omniavatar` in a command that runs it, in one way or another; [] for other commands."""
    if words[:3] == ["accelerate", "launch", "..."]:
        return ["train", *words[3:]]
    if words[:2] == ["accelerate", "launch"]:
        launch = launch_command_parser().parse_args(words[2:])
        assert (ROOT / launch.config_file).is_file()
        is_training = launch.training_script == "diffsynth_omniavatar.train"
        return [*(["train"] if is_training else []), *launch.training_script_args]
    if words[:3] == ["docker", "compose", "run"]:
        service = next(word for word in words[3:] if not word.startswith("--"))
        after = words[words.index(service) + 1 :]
        return ["train", *after] if service == "train" else after
    for start in ("omniavatar", "diffsynth_omniavatar"):
        if start in words and words[0] in (start, "torchrun"):
            return words[words.index(start) + 1 :]
    if "bash" in words and Path(words[words.index("bash") + 1]).name.startswith("train_"):
        return ["train", *words[words.index("bash") + 2 :]]
    return []


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_flags_exist(page: str) -> None:
    for words in commands_of(page):
        command = omniavatar_words(words)
        if command and command[0] not in ("--help", "--version"):
            assert command[0] in flags(), words
            if command[0] == "precompute" and "--trajectories" in command:  # all other flags are those of training
                command = ["train", *command[1:]]
            used = {word.split("=")[0] for word in command if word.startswith("--")}
            assert used <= flags()[command[0]], words


def test_commands_are_found() -> None:
    found = [omniavatar_words(words) for page in PAGES for words in commands_of(page)]
    assert {command[0] for command in found if command} >= {
        "generate",
        "dub",
        "train",
        "precompute",
        "evaluate",
        "plan",
    }


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_exist(page: str) -> None:
    known = set().union(*flags().values(), OF_OTHERS, {f"--{name}" for name in HOST_HELP})
    for span in re.findall(r"`([^`]+)`", FENCE.sub("", text_of(page))):
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+(?![\w*-])", span)) <= known, span
        command = re.match(r"omniavatar ([a-z]\w*)", span)
        assert command is None or command[1] in flags(), span


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page: str) -> None:
    named = {match[0] for match in PLACES.finditer(text_of(page))}
    assert {name for name in named if not (ROOT / name).is_file()} == set()
