"""The case of `goldens/lipforcing`: a video of four chunks of latent frames, of 65 channels."""

import torch
from golden_models import Goldens
from recipe import inp
from torch import Tensor

from diffsynth_omniavatar.generation.causal import ChunkInputs, causal_latents
from diffsynth_omniavatar.model.causal import CausalDenoiser
from diffsynth_omniavatar.model.dit import OmniAvatarDiT

FRAMES, HEIGHT, WIDTH = 12, 4, 6
CHUNK = 3


def given(golden: Goldens, name: str, *shape: int) -> Tensor:
    return inp("lipforcing", name, shape, golden.seed)


def latents(golden: Goldens, name: str) -> Tensor:
    return given(golden, name, 1, 16, FRAMES, HEIGHT, WIDTH)


def context(golden: Goldens) -> Tensor:
    return given(golden, "context", 1, golden.dims["text_tokens"], golden.dims["text_dim"])


def inputs(golden: Goldens) -> ChunkInputs:
    """Conditioning and audio features of the whole video; the reference is its first frame, all frames are masked."""
    reference = latents(golden, "ref_sequence")
    shown = 1 - (given(golden, "mask", HEIGHT, WIDTH) > 0).float().expand(1, 1, FRAMES, -1, -1)
    first = reference[:, :, :1].expand(-1, -1, FRAMES, -1, -1)
    y = torch.cat([first, shown, latents(golden, "masked_video"), reference], dim=1)
    return ChunkInputs(y, given(golden, "audio", 1, 4 * FRAMES - 3, golden.meta["audio_dim"]))


def chunks_of(whole: ChunkInputs) -> list[ChunkInputs]:
    rows = [0, *range(4 * CHUNK - 3, whole.audio.shape[1] + 1, 4 * CHUNK)]
    parts = zip(whole.y.split(CHUNK, dim=2), rows, rows[1:], strict=False)
    return [ChunkInputs(y, whole.audio[:, start:stop]) for y, start, stop in parts]


def made(golden: Goldens, dit: OmniAvatarDiT) -> list[Tensor]:
    """The latents of the chunks, each from its noise and one fresh noise."""
    noises = latents(golden, "noise").split(CHUNK, dim=2)
    drawn = iter([n for i, start in enumerate(noises) for n in (start, given(golden, f"fresh/{i}", *start.shape))])
    denoise = CausalDenoiser(dit, context(golden))
    return list(causal_latents(denoise, chunks_of(inputs(golden)), lambda shape: next(drawn)))
