"""Several processes make the video that one makes; here three on the CPU."""

import pytest
import soundfile
import torch
from golden_models import relative_deviation
from processes import run_in_processes
from safetensors.torch import load_file
from sequence_parallel_worker import CLIPS, PROCESSES, QUANTIZED, final_latents, work, written_frames
from synthetic_clips import portrait, speech

from diffsynth_omniavatar.generation.loading import load_pipeline
from diffsynth_omniavatar.media.video import probe_video
from diffsynth_omniavatar.model.blocks.process_grid import ProcessGrid
from diffsynth_omniavatar.model.blocks.runner import BlockRunner
from diffsynth_omniavatar.model.blocks.sequence_parallel import SequenceParallel
from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.model.convert import convert
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.nano.family import write_random_family

TOLERANCE = 1e-5  # float32, against the host's blocks: another order of the same operations


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    conventions = Conventions(image_sizes=((64, 64),), max_tokens=36)
    i2v, v2v = (write_random_family(folder / str(in_dim), in_dim, conventions=conventions) for in_dim in (33, 49))
    convert(i2v / FILES["omniavatar"], i2v / QUANTIZED, "merged", base=i2v / FILES["dit"], quantize="fp8")
    return [i2v, v2v]


@pytest.fixture(scope="module")
def flags(families, tmp_path_factory):
    """Of a video of more than one chunk."""
    folder = tmp_path_factory.mktemp("inputs")
    portrait(96).save(folder / "face.png")
    soundfile.write(folder / "speech.wav", speech(0.5), 16000)
    values = {"models_folder": families[0], "prompt": "a", "image": folder / "face.png", "audio": folder / "speech.wav"}
    values |= {"steps": 2, "overlap": 5, "device": "cpu", "crf": 0}
    return ["generate", *(str(word) for name, value in values.items() for word in (f"--{name}", value))]


@pytest.fixture(scope="module")
def many(families, flags, tmp_path_factory):
    """The folder of what several processes make and say."""
    folder = tmp_path_factory.mktemp("many")
    run_in_processes(work, *families, folder, [*flags, "--out", str(folder / "video.mp4")], processes=PROCESSES)
    return folder


@pytest.mark.slow
@pytest.mark.forks
def test_three_processes_compute_the_latents_of_one(families, many):
    first, second, third = (load_file(many / f"latents.{rank}.safetensors") for rank in range(PROCESSES))
    wanted = final_latents(*families, use_usp=False)
    assert set(first) == {*CLIPS, "batch", "V2V", "V2V, three passes", "8 bits"}
    for name, latents in wanted.items():
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], third[name]), name
        assert relative_deviation(first[name], latents) < TOLERANCE, name


@pytest.mark.slow
@pytest.mark.forks
def test_the_first_process_writes_the_video(flags, many, tmp_path):
    said = [(many / f"said.{rank}.txt").read_text() for rank in range(PROCESSES)]
    assert ["video.mp4: " in words for words in said] == [True, False, False]
    together, *others = (torch.load(many / f"frames.{rank}.pt") for rank in range(PROCESSES))
    assert others == [[], []]
    _, alone = written_frames([*flags, "--out", str(tmp_path / "video.mp4")])
    assert [part.shape for part in alone] == [part.shape for part in together] and len(alone) > 1  # more than a chunk
    assert (torch.cat(alone).int() - torch.cat(together).int()).abs().max() <= 1  # levels of 255: rounding
    assert probe_video(many / "video.mp4").frames == len(torch.cat(together))


@pytest.mark.parametrize("tokens", [1, 5, 6, 7])
def test_shares_make_up_the_whole(tokens):
    whole = torch.arange(1.0, tokens + 1).view(1, tokens, 1)
    parts = [SequenceParallel(rank, 3).share(whole) for rank in range(3)]
    assert len({part.shape for part in parts}) == 1
    joined = torch.cat(parts, dim=1)
    assert torch.equal(joined[:, :tokens], whole) and not joined[:, tokens:].any()


@pytest.mark.parametrize(
    ("processes", "passes", "rows"), [(2, 2, 2), (4, 2, 2), (3, 2, 1), (2, 3, 1), (6, 3, 3), (4, 1, 1)]
)
def test_processes_are_a_grid_of_passes_and_tokens(monkeypatch, processes, passes, rows):
    """Each process shares its tokens with its row, and its predictions with its column, in the rows' order."""
    monkeypatch.setattr(torch.distributed, "new_group", lambda ranks: [*ranks])
    seen = []
    for rank in range(processes):
        everybody = SequenceParallel(rank, processes)
        sequence, others = ProcessGrid(everybody).arrange(passes)
        if rows == 1:
            assert sequence is everybody and others is None
            continue
        row = [rank] if sequence is None else sequence.group
        assert row == [*range(row[0], row[0] + processes // rows)] and rank in row
        assert sequence is None or (sequence.group[sequence.rank] == rank and sequence.ranks == len(row))
        assert others.rows == rows == len(others.group) and others.group[others.row] == rank
        seen.append((others.row, row))
    assert len({str(one) for one in seen}) == (rows if rows > 1 else 0)


def test_what_cannot_run_in_parallel_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="start with `torchrun"):
        SequenceParallel.start("cpu")
    with pytest.raises(ValueError, match="3 processes cannot share the model's 40 heads"):
        SequenceParallel(0, 3).check(40)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="leave --device cuda:1 out"):
        SequenceParallel.start("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="there are 1 GPUs; lower --nproc_per_node"):
        SequenceParallel.start("cuda")


def test_processes_that_share_a_sequence_need_a_seed_and_give_no_gradients(families):
    pipe = load_pipeline(folder=families[0], device="cpu")
    pipe.dit.runner = BlockRunner(parallel=SequenceParallel(1, 2))
    assert not pipe.is_first_process
    with pytest.raises(ValueError, match="from the same noise: give seed="):
        pipe("a", input_image=portrait(64), input_audio=speech(0.4))
    x, y, audio = torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 17, 1, 2, 2), torch.zeros(1, 1, pipe.dit.config.audio_dim)
    with pytest.raises(ValueError, match="gives no gradients"):
        pipe.dit(x, torch.tensor([1.0]), torch.zeros(1, 1, pipe.dit.config.text_dim), y, audio)
