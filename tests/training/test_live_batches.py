"""A batch of clips that are encoded while training runs has of each clip what it would have alone."""

import pytest
import torch
from training_runs import FRAMES, SIZE, live_sample, make_module

from diffsynth_omniavatar.model.config import Conventions
from diffsynth_omniavatar.nano.family import write_random_family

SHARED = (
    "input_latents",
    "omni_reference_latents",
    "omni_masked_latents",
    "omni_reference_sequence_latents",
    "omni_prefix_latents",
    "omni_y",
)
POSITIVE = ("context", "omni_audio")


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    folder = write_random_family(tmp_path_factory.mktemp("65"), 65)
    return make_module(folder, conventions=Conventions(leading_audio_rows=1, first_frame="known"))


def clips(places):
    """Those of three clips that differ in everything; of the last the recipe drops text and sound."""
    generator = torch.Generator().manual_seed(0)
    videos, others = torch.randint(0, 255, (2, 3, FRAMES, SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)
    waveforms = [0.1 * torch.randn(640 * rows, generator=generator) for rows in (12, 15, 20)]
    drop = torch.tensor([False, False, True])
    return live_sample(
        sources=[f"clip {place}" for place in places],
        target_video=videos[places],
        reference_image=videos[places, 7],
        reference_video=others[places],
        waveforms=[waveforms[place] for place in places],
        prompts=[("a man", "a woman in red", "nobody")[place] for place in places],
        drop_text=drop[places],
        drop_audio=drop[places],
        drop_prefix=torch.zeros(len(places), dtype=torch.bool),
    )


def test_a_live_batch_has_of_each_clip_what_it_has_alone(module):
    shared, positive, _ = module.prepare(clips([0, 1, 2]))
    for place in range(3):
        wanted = module.prepare(clips([place]))
        for names, found, alone in ((SHARED, shared, wanted[0]), (POSITIVE, positive, wanted[1])):
            for name in names:
                assert torch.equal(found[name][place : place + 1], alone[name]), (name, place)
    for values in (*(shared[name] for name in SHARED), *(positive[name] for name in POSITIVE)):
        assert len({value.sum().item() for value in values}) == 3  # no two clips have the same
