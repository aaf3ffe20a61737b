"""The causal denoiser gives the numbers of Lip Forcing's student, and a chunk sees whom it should.

`goldens/lipforcing.safetensors` holds the latents of four chunks. They were computed by a transcription of Lip
Forcing's streaming loop and causal network (https://github.com/T-64/LipForcing, commit fc86477: chunks of 3 latent
frames, levels 0.999 and 0.769, window 7, sink 1, rotation within the window) in float32 on a CPU, on the weights and
inputs that `causal_case` names. Its attention, which rounds to bfloat16 where there is no flash attention, was left in
float32.
"""

import causal_case as case
import pytest
import torch
from golden_models import Goldens, relative_deviation

from diffsynth_omniavatar.generation.causal import ChunkInputs, causal_latents, decoded, source_chunks
from diffsynth_omniavatar.generation.masks import load_mouth_mask, mask_to_latents, mask_video
from diffsynth_omniavatar.model.blocks import runner
from diffsynth_omniavatar.model.blocks.runner import BlockRunner
from diffsynth_omniavatar.model.causal import CausalDenoiser, Window
from diffsynth_omniavatar.model.frame_decoder import decode_video
from diffsynth_omniavatar.model.frame_encoder import FrameEncoder
from diffsynth_omniavatar.model.small_family import SmallVAE
from diffsynth_omniavatar.nano.family import randomise

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden(goldens):
    return Goldens(goldens)


@pytest.fixture(scope="module")
def dit(golden):
    return golden.dit(in_dim=65).requires_grad_(False)


def noisy_chunks(golden):
    return zip(case.latents(golden, "noise").split(case.CHUNK, dim=2), case.chunks_of(case.inputs(golden)), strict=True)


def test_the_loop_gives_the_latents_of_lip_forcing(golden, dit):
    wanted = golden.tensors("lipforcing")["latents"].split(case.CHUNK, dim=2)
    for number, pair in enumerate(zip(case.made(golden, dit), wanted, strict=True)):
        assert relative_deviation(*pair) < TOLERANCE, number


@pytest.mark.parametrize("frames", [6, 9])
def test_chunks_one_by_one_equal_the_whole_under_the_block_causal_mask(golden, dit, frames, monkeypatch):
    y, audio = case.inputs(golden)
    whole = ChunkInputs(y[:, :, :frames], audio[:, : 4 * frames - 3])
    x, timestep, context = case.latents(golden, "noise")[:, :, :frames], torch.tensor([37.5]), case.context(golden)
    denoise = CausalDenoiser(dit, context, Window(seen=9))
    parts = zip(x.split(case.CHUNK, dim=2), case.chunks_of(whole), strict=True)
    one_by_one = torch.cat([denoise(part, timestep, *chunk, keep=True) for part, chunk in parts], dim=2)

    chunk_of = torch.arange(frames).repeat_interleave(case.HEIGHT * case.WIDTH // 4) // case.CHUNK
    mask = chunk_of[:, None] >= chunk_of[None]

    def masked_attention(q, k, v, num_heads):
        q, k, v = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)

    monkeypatch.setattr(runner, "flash_attention", masked_attention)
    with torch.no_grad():
        at_once = dit.predict(x, timestep, context, whole.y, dit.audio_proj(whole.audio), BlockRunner())
    assert relative_deviation(one_by_one, at_once) < TOLERANCE


def test_the_cache_stops_growing_and_a_pass_that_is_not_kept_leaves_it(golden, dit):
    denoise, timestep, sizes = CausalDenoiser(dit, case.context(golden)), torch.zeros(1), []
    for x, chunk in noisy_chunks(golden):
        before = denoise.kept_numbers
        passing = denoise(x, timestep, *chunk)
        assert denoise.kept_numbers == before
        assert torch.equal(denoise(x, timestep, *chunk, keep=True), passing)
        sizes.append(denoise.kept_numbers)
    a_frame = 2 * len(dit.blocks) * (case.HEIGHT // 2) * (case.WIDTH // 2) * dit.dim
    assert sizes == [3 * a_frame, 4 * a_frame, 4 * a_frame, 4 * a_frame]


def test_a_wrong_chunk_or_window_is_refused(golden, dit):
    x, chunk = list(noisy_chunks(golden))[1]
    with pytest.raises(ValueError, match="12 rows of audio features, wanted 3 with 9"):
        CausalDenoiser(dit, case.context(golden))(x, torch.zeros(1), *chunk)
    with pytest.raises(ValueError, match="room for it and the sink"):
        Window(chunk=6, seen=7, sink=2)


@pytest.fixture(scope="module")
def vae():
    vae = SmallVAE(dim=4)
    vae.load_state_dict(randomise(vae, torch.Generator().manual_seed(0)))
    return vae


@pytest.fixture(scope="module")
def pictures():
    """Those of two chunks."""
    video = torch.rand(1, 3, 21, 32, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return video.split([9, 12], dim=2)


def test_chunks_are_decoded_as_the_whole_video_bit_for_bit(vae):
    latents = torch.randn(1, 16, 6, 2, 2, generator=torch.Generator().manual_seed(1))
    chunks = list(decoded(vae, latents.split(3, dim=2)))
    assert [chunk.shape[2] for chunk in chunks] == [9, 12]
    assert torch.equal(torch.cat(chunks, dim=2), decode_video(vae, latents))


def test_a_source_is_encoded_chunk_by_chunk_as_the_whole(vae, pictures):
    mask = load_mouth_mask(None, 32, 48)
    rows = [torch.zeros(1, part.shape[2], 1) for part in pictures]
    y = torch.cat([chunk.y for chunk in source_chunks(vae, pictures, mask, rows)], dim=2)
    video = torch.cat(pictures, dim=2)
    with torch.no_grad():
        whole, masked = (vae.model.encode(part, vae.scale) for part in (video, mask_video(video, mask, 0)))
    wanted = [whole[:, :, :1].expand(-1, -1, 6, -1, -1), mask_to_latents(mask, 6), masked, whole]
    assert relative_deviation(y, torch.cat(wanted, dim=1)) < 1e-6


def test_a_chunk_is_shown_before_the_next_one_is_asked_for(golden, dit, vae, pictures):
    asked = []
    incoming = (asked.append(number) or part for number, part in enumerate(pictures))
    rows = (torch.zeros(1, part.shape[2], golden.meta["audio_dim"]) for part in pictures)
    chunks = source_chunks(vae, incoming, load_mouth_mask(None, 32, 48), rows)
    denoise = CausalDenoiser(dit, case.context(golden))
    shown = decoded(vae, causal_latents(denoise, chunks, torch.randn))
    for number, part in enumerate(pictures):
        assert next(shown).shape == part.shape and asked == [*range(number + 1)]


def test_a_part_of_the_source_with_another_number_of_frames_is_refused(vae, pictures):
    with pytest.raises(ValueError, match="12 frames, wanted 4n-3"):
        FrameEncoder(vae)(pictures[1])
