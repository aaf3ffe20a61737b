"""Values of `--config` are what the command line would make of them, or are refused with file and key."""

import math

import pytest
import yaml

from diffsynth_omniavatar.training.flags import FlagError, parse_arguments

NEEDED = {"dataset_metadata_path": "m.csv", "model_paths": "[]"}


def parsed(tmp_path, **values):
    path = tmp_path / "flags.yaml"
    path.write_text(yaml.safe_dump({**NEEDED, **values}))
    return parse_arguments(["--config", str(path)])


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("compile", True, True),
        ("compile", False, False),
        ("prefix_frames", 5, (5,)),
        ("prefix_frames", [1, 5], (1, 5)),
        ("prefix_frames", "1,5", (1, 5)),
        ("prefix_frames", [], ()),
        ("num_frames", 17, 17),
        ("num_frames", "17", 17),
        ("learning_rate", "1e-4", 1e-4),  # so YAML reads 1e-4 without a point
        ("lora_alpha", 3, 3.0),
        ("max_grad_norm", math.inf, math.inf),
        ("activation_memory", 16, 16.0),
        ("activation_memory", "auto", "auto"),
        ("model_paths", ["a", ["b", "c"]], '["a", ["b", "c"]]'),
        ("lora_target_modules", ["q", "k"], "q,k"),
        ("max_steps", None, None),
    ],
)
def test_a_value_means_what_the_command_line_makes_of_it(tmp_path, name, value, wanted):
    got = getattr(parsed(tmp_path, **{name: value}), name)
    assert got == wanted and type(got) is type(wanted)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("offload_frozen", "false", "is 'false', wanted true or false, without quotes"),
        ("compile", 1, "is '1', wanted true or false"),
        ("num_frames", 17.5, "is '17.5', wanted a whole number"),
        ("num_frames", True, "is 'True', wanted a whole number"),
        ("num_frames", [17], r"is '\[17\]', wanted a whole number"),
        ("learning_rate", "fast", "is 'fast', wanted a number"),
        ("prefix_frames", 5.5, "is '5.5', wanted numbers of frames"),
        ("output_path", 1.10, "is '1.1', wanted text, in quotes"),
        ("output_path", False, "is 'False', wanted text"),
        ("lora_target_modules", ["q", {"k": 1}], r"is .*, wanted a list of names or numbers"),
        ("activation_memory", -1, "is '-1', -1 is negative"),
        ("lr_schedule", "sometimes", "is 'sometimes', wanted one of"),
        ("leading_audio_rows", 2, "is '2', wanted one of"),
    ],
)
def test_a_value_of_another_kind_is_refused(tmp_path, name, value, message):
    with pytest.raises(FlagError, match=rf"flags\.yaml: {name} {message}"):
        parsed(tmp_path, **{name: value})


def test_what_a_run_writes_is_read_back(tmp_path):
    args = parsed(tmp_path, prefix_frames=[1, 9], activation_memory=2, compile=True, seed=4)
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(args).items() if name != "config"}
    again = parsed(tmp_path, **{name: value for name, value in values.items() if name != "dry_run"})
    assert vars(again) == vars(args)
