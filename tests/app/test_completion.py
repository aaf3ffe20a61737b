"""`omniavatar completion`: a shell offers what the commands take, and files where they take files."""

import subprocess
from pathlib import Path

import pytest

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.app.completion import SHELLS
from diffsynth_omniavatar.training.flags import build_parser

ROOT = Path(__file__).resolve().parents[2]
TRY = """
source /dev/stdin
for line; do
    COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _shtab_omniavatar 2>/dev/null
    echo "${COMPREPLY[*]}"
done
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["completion", shell]) == 0
    return capsys.readouterr().out


def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {
        "omniavatar gen": "generate",
        "omniavatar generate --model na": "nano nano-v2v",
        "omniavatar generate --image READ": "README.md",
        "omniavatar dub READ": "README.md",
        "omniavatar train --omniavatar_mode i": "i2v",
    }
    command = ["bash", "-c", TRY, "bash", *lines]
    done = subprocess.run(
        command, input=script("bash", capsys), cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert dict(zip(lines, done.stdout.splitlines(), strict=True)) == lines


@pytest.mark.parametrize("shell", SHELLS)
def test_each_script_has_the_flags_of_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    shown = [action for action in build_parser()._actions if action.help != "==SUPPRESS=="]
    flags = {flag for action in shown for flag in action.option_strings if flag.startswith("--")}
    flags |= {"--image", "--keep_audio", "--lora_form", "--workers", "--port", "--checkpoints"}
    assert len(flags) > 100
    assert {flag for flag in flags if flag.removeprefix("--") not in text} == set()
