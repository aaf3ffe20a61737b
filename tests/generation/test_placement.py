"""Where the weights of a pipeline are loaded to."""

import pytest

from diffsynth_omniavatar.generation import placement
from diffsynth_omniavatar.generation.own_configs import sort_configs
from diffsynth_omniavatar.generation.placement import WORKING_MEMORY, Placement
from diffsynth_omniavatar.host import ModelConfig

FREE = 20 * 2**30
FITS = FREE - WORKING_MEMORY


@pytest.mark.parametrize(
    ("wanted", "size", "on_cpu"),
    [
        (Placement(), FITS, False),
        (Placement("fp8"), FITS, False),
        (Placement("fp8"), FITS + 1, True),
        (Placement("fp8"), None, True),
        (Placement("fp8", stream=True), FITS, True),
        (Placement(shard=True), FITS, True),
        (Placement(is_quantized=True), FITS, True),
    ],
)
def test_models_are_loaded_to_the_gpu_where_it_has_room_and_to_cpu_memory_otherwise(monkeypatch, wanted, size, on_cpu):
    monkeypatch.setattr(placement, "free_memory", lambda device: FREE)
    assert wanted.loads_on_cpu("cuda", size) == on_cpu
    assert wanted.loads_on_cpu("cpu", size) == wanted.is_wanted == (wanted != Placement())


def test_the_size_of_files_is_known_unless_some_are_on_a_hub(tmp_path):
    files = [tmp_path / name for name in ("a.pth", "b.pth", "c.pth")]
    for number, file in enumerate(files):
        file.write_bytes(bytes(10**number))
    local = [ModelConfig(path=str(files[0])), ModelConfig(path=[str(files[1]), str(files[2])])]
    assert sort_configs(local).host_bytes == 111
    assert (
        sort_configs([*local, ModelConfig(model_id="Wan-AI/Wan2.1-T2V-1.3B", origin_file_pattern="*")]).host_bytes
        is None
    )
