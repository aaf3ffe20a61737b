"""What is filled in under Train becomes a command that training takes; what is wrong is told at its field."""

import csv
import json

import pytest
from accelerate.commands.launch import launch_command_parser
from synthetic_clips import write_texture

from diffsynth_omniavatar.app.cli import parse
from diffsynth_omniavatar.app.measured import Size
from diffsynth_omniavatar.app.page.faults import FieldFaults
from diffsynth_omniavatar.app.page.readable import Readable
from diffsynth_omniavatar.app.page.shelf import Shelf
from diffsynth_omniavatar.app.page.training_command import MODULE, Training, clip_faults, command_of
from diffsynth_omniavatar.app.page.training_data import CAPTION, find_data
from diffsynth_omniavatar.app.page.training_form import check_form, plan_text
from diffsynth_omniavatar.app.page.training_runs import TrainingRuns
from diffsynth_omniavatar.generation.samples import read_samples
from diffsynth_omniavatar.model.files import NANO_V2V, ModelFiles
from diffsynth_omniavatar.training.first_checks import check_files
from diffsynth_omniavatar.training.flags import parse_arguments
from diffsynth_omniavatar.training.run import named_clips

pytestmark = pytest.mark.one_host("the same files and flags with both")

FIELDS = {
    "data": "",
    "caption": "",
    "mode": "i2v",
    "model": "nano",
    "name": "run",
    "size": "128x128x17",
    "max_steps": 20,
    "lora_rank": 16,
    "learning_rate": 1e-3,
    "batch_size": 1,
    "videos": 1,
    "gpu": 24,
    "gpus": 1,
}
NASTY = "\"><img src=x onerror=alert(1)>, 'a'.mp4"
"""Of a clip."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    for name in ("data/clips/a.mp4", "data/clips/deep/b.mp4", f"data/clips/{NASTY}", "elsewhere/c.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_texture(folder / name, 25, 128)
    (folder / "data/clips/a.txt").write_text("Anna,\n speaks.\n")
    (folder / "data/links").mkdir()
    (folder / "data/links/out.mp4").symlink_to(folder / "elsewhere/c.mp4")
    prepared = folder / "data/prepared"
    prepared.mkdir()
    (prepared / "metadata.csv").write_text("video,prompt\n../clips/a.mp4,a\n../clips/deep/b.mp4,b\n")
    (prepared / "validation.csv").write_text("video,prompt\n../clips/a.mp4,a\n")
    (prepared / "report.html").touch()
    (folder / "data/out.csv").write_text(f"video,prompt\n{folder}/elsewhere/c.mp4,c\n")
    return folder


@pytest.fixture
def readable(places):
    return Readable([places / "data"])


@pytest.fixture(scope="module")
def shelf():
    return Shelf(parse(["page"]))


def checked(places, shelf, tmp_path, **changed):
    runs = TrainingRuns(tmp_path)
    return check_form({**FIELDS, "data": str(places / "data"), **changed}, shelf, Readable([places / "data"]), runs)


def test_a_folder_of_clips_gets_tables_whatever_its_clips_are_called(places, readable, tmp_path):
    data = find_data(places / "data/clips", readable)
    assert [clip.name for clip in (*data.clips, *data.held_out)] == [NASTY, "a.mp4", "deep/b.mp4"]
    assert data.clips[1].prompt == "Anna, speaks." and data.held_out[0].prompt == CAPTION
    data.write(tmp_path, 8, is_v2v=False)
    table, held_out = data.tables_in(tmp_path)
    with table.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["video"] for row in rows] == [str(clip.video) for clip in data.clips]
    assert held_out.is_file()
    samples, faults = read_samples(tmp_path / "validation.txt")
    assert not faults and samples[1].audio == data.held_out[0].video and samples[1].source.suffix == ".png"


def test_the_tables_of_prepare_are_taken_as_they_are(places, readable):
    folder = places / "data/prepared"
    for given in (folder, folder / "report.html", folder / "metadata.csv"):
        data = find_data(given, readable)
        assert data.tables_in(places) == (folder / "metadata.csv", folder / "validation.csv")
        assert (len(data.clips), len(data.held_out)) == (2, 1)
    data = find_data(folder / "validation.csv", readable)
    assert data.tables is None and (len(data.clips), len(data.held_out)) == (1, 0)


def test_nothing_outside_the_folders_is_read_or_told_of(places, readable):
    for text in (str(places / "elsewhere"), f"{places}/data/../elsewhere", str(places / "data/links/out.mp4"), "/etc"):
        with pytest.raises(ValueError, match="not in the folders that the page may read"):
            readable.path(text)
    with pytest.raises(ValueError, match="not in the folders"):
        readable.path(str(places / "nowhere"))
    with pytest.raises(ValueError, match="is not there"):
        readable.path(str(places / "data/nowhere"))
    for given in ("out.csv", "links"):
        with pytest.raises(ValueError, match=r"names .*[.]mp4, which is not in the folders"):
            find_data(places / "data" / given, readable)
    for text in ("", "a\0b", f"{places}/data/{'a' * 300}"):
        with pytest.raises(ValueError):
            readable.path(text)
    assert readable.data_sets() == [str(places / "data" / name) for name in ("clips", "links", "prepared")]


@pytest.mark.parametrize("mode", ["i2v", "v2v"])
@pytest.mark.parametrize("kind", ["clips", "prepared"])
def test_training_takes_the_command(places, shelf, tmp_path, mode, kind):
    training, folder = checked(places, shelf, tmp_path, mode=mode, data=str(places / "data" / kind))
    assert folder == tmp_path / "run" and not folder.exists()
    assert clip_faults(training, folder) == []
    folder.mkdir()
    training.data.write(folder, training.videos, is_v2v=training.is_v2v)
    command = command_of(training, folder)
    assert command[:2] == ["accelerate", "launch"]
    args = parse_arguments(command[command.index(MODULE) + 1 :])
    check_files(args)
    assert len(named_clips(args)) == 2 and args.max_steps == 20 and args.output_path == str(folder)
    assert args.validation_steps == args.save_steps == 4


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_command_of_a_published_model(places, tmp_path, gpus):
    names = {"dit": ("dit-1", "dit-2"), "text_encoder": ("text_encoder", "the same"), "vae": ("vae",)}
    names |= {"tokenizer": ("tokenizer",), "wav2vec2": ("wav2vec2",)}
    paths = {part: tuple(tmp_path / name for name in files) for part, files in names.items()}
    for path in (path for files in paths.values() for path in files):
        path.touch()
    paths["omniavatar"] = (NANO_V2V,)
    training = Training(
        data=find_data(places / "data/clips", Readable([places / "data"])),
        mode="v2v",
        files=ModelFiles(paths),
        is_nano=False,
        size=Size(512, 512, 81),
        steps=2000,
        rank=128,
        learning_rate=1e-4,
        batch=1,
        videos=2,
        gpus=gpus,
        memory_flags=("--compile", "--activation_memory", "auto"),
    )
    command = command_of(training, tmp_path / "run")
    launch = launch_command_parser().parse_args(command[2:])
    assert launch.num_processes == gpus and launch.multi_gpu == (gpus > 1) and not launch.cpu
    args = parse_arguments(launch.training_script_args)
    dit, text_encoder, vae = json.loads(args.model_paths)
    assert [dit, text_encoder, vae] == [
        [str(tmp_path / "dit-1"), str(tmp_path / "dit-2")],
        str(tmp_path / "text_encoder"),
        str(tmp_path / "vae"),
    ]
    assert args.compile and args.dtype == "bfloat16" and args.offload_frozen and args.save_steps == 400


def test_clips_with_faults_are_found_and_left_out_of_tables_that_the_page_writes(places, shelf, tmp_path):
    bad = places / "data/bad"
    bad.mkdir(exist_ok=True)
    for name in ("a.mp4", "b.mp4"):
        write_texture(bad / name, 25, 128)
    (bad / "c.mp4").write_bytes(b"no video")
    training, folder = checked(places, shelf, tmp_path, data=str(bad))
    faults = clip_faults(training, folder)
    assert [fault.clip for fault in faults] == ["c.mp4"]
    rest = training.data.without([fault.index for fault in faults])
    assert [clip.name for clip in (*rest.clips, *rest.held_out)] == ["a.mp4", "b.mp4"]
    assert training.data.hindrance([2]) is None and training.data.hindrance([0, 1, 2]) == "All clips have faults."


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("data", "", "Give the path"),
        ("data", None, "Give the path"),
        ("data", "/etc/passwd", "not in the folders"),
        ("name", "", "Give the run a name."),
        ("name", "../a", "cannot be the name"),
        ("mode", "t2v", "Choose one"),
        ("model", "14B", "Choose a model that is there"),
        ("model", ["nano"], "Choose a model that is there"),
        ("size", "100x100x17", "height 100 is no multiple of 16"),
        ("size", None, "wanted height x width x frames"),
        ("max_steps", 0, "whole number from 1 to 10,000,000"),
        ("max_steps", 2.5, "whole number"),
        ("max_steps", None, "whole number"),
        ("max_steps", "20", "whole number"),
        ("learning_rate", float("nan"), "Wanted a number"),
        ("videos", -1, "whole number from 0 to 8"),
    ],
)
def test_a_fault_is_told_at_its_field(places, shelf, tmp_path, field, value, told):
    with pytest.raises(FieldFaults, match=told) as caught:
        checked(places, shelf, tmp_path, **{"data": str(places / "data/clips"), field: value})
    assert [*caught.value.faults] == [field]


def test_the_plan_is_that_of_the_command():
    fields = {**FIELDS, "model": "14B", "size": "512x512x81", "lora_rank": 128}
    assert "Use: --compile --activation_memory auto" in plan_text(fields)
    assert "Nothing fits" in plan_text({**fields, "gpu": 4})
    assert "nothing is to be planned" in plan_text(FIELDS)
    assert plan_text({**fields, "size": "x"}).startswith("Is 'x', wanted height x width x frames")
