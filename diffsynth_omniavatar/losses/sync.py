"""Do lips and speech fit? StableSyncNet's cosine of 16 frames and their sound, after LatentSync.

    loss = SyncLoss(load_syncnet("stable_syncnet.pt", "cuda", torch.bfloat16))
    value = loss(frames, [mel_spectrogram(waveform)], [0])

A visual and an audio encoder of the same kind (residual blocks with strides, attention after two of them) each give a
vector of length 1; the loss is small where the two agree. Source: StableSyncNet and train_unet.py of LatentSync
(https://github.com/bytedance/LatentSync, https://arxiv.org/abs/2412.09262), audio.py of Wav2Lip, rebuilt with the same
names of weights, so that its stable_syncnet.pt loads.

Memory in 16 bits: 0.8 GB of weights, and 0.1 GB for the gradient of a window. The frames are judged window by window,
and `window_loss` lets a caller take the gradient of one at a time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frozen import apply_blocks, check_frames, freeze, judge, load_strictly, lower_half, read_weights, resize, windows

logger = logging.getLogger(__name__)

Form = Literal["cosine", "logits"]

SOURCE = "get stable_syncnet.pt of LatentSync: huggingface.co/ByteDance/LatentSync-1.6"

SAMPLE_RATE = 16000
FFT = 800
HOP = 200
MEL_ROWS = 80
MEL_RANGE = (55.0, 7600.0)
"""Hertz: the lowest edge of the first mel filter and the highest of the last."""
PRE_EMPHASIS = 0.97
REFERENCE_DB = 20.0
FLOOR_DB = -100.0
LARGEST_MEL = 4.0
MEL_COLUMNS = 52
"""Columns of a window of 16 frames: ceil(16 * 80 / 25)."""

Stride = tuple[int, int]
AUDIO_CHANNELS = (32, 64, 128, 256, 512, 1024, 2048)
AUDIO_STRIDES: tuple[Stride, ...] = ((2, 1), (2, 2), (2, 2), (1, 1), (2, 2), (2, 2), (2, 3))
AUDIO_ATTENTION = (3, 4)
VISUAL_CHANNELS = (64, 128, 256, 256, 512, 1024, 2048, 2048)
VISUAL_STRIDES: tuple[Stride, ...] = ((1, 2), *[(2, 2)] * 7)
VISUAL_ATTENTION = (4, 5)
NORM_GROUPS = 32
NORM_EPS = 1e-6
ATTENTION_HEADS = 8
PICTURE_SIZE = 256
WINDOW = 16

LEAST_COSINE = 1e-3
"""Below it, the loss -log(cosine) goes on as its tangent there."""


# ---------------------------------------------------------------------------------------------------------------- sound


def mel_spectrogram(waveform: Tensor) -> Tensor:
    """Mel spectrogram of a whole sound, as StableSyncNet hears it: 80 columns a second, column j centred on 200 j.

    y[i] = w[i] - 0.97 w[i - 1]; S = |STFT(y)| with 800 samples of a Hann window every 200, zeros around the sound; 80
    triangular filters of equal area from 55 to 7600 Hz on Slaney's mel scale; d = 20 log10(max(1e-5, S)) - 20, and
    8 (d + 100) / 100 - 4, cut to [-4, 4]. Computed in float64.

    Cutting the sound first would put zeros where its neighbourhood sounds: take windows of the whole's mel.

    Args:
        waveform [n]: floating point, in [-1, 1], mono, 16 kHz.

    Returns:
        [80, 1 + n // 200] float32 in [-4, 4], on the waveform's device.

    Raises:
        ValueError: the waveform is not one-dimensional, not floating point, or empty.
    """
    if waveform.ndim != 1 or not waveform.is_floating_point() or not len(waveform):
        raise ValueError(f"waveform: got {list(waveform.shape)} {waveform.dtype}, wanted floating [n], mono, 16 kHz")
    sound = waveform.double()
    emphasised = torch.cat([sound[:1], sound[1:] - PRE_EMPHASIS * sound[:-1]])
    window = torch.hann_window(FFT, dtype=torch.float64, device=sound.device)
    spectrum = torch.stft(emphasised, FFT, HOP, window=window, center=True, pad_mode="constant", return_complex=True)
    mel = mel_filters().to(sound.device) @ spectrum.abs()
    decibels = 20 * mel.clamp(min=10 ** (FLOOR_DB / 20)).log10() - REFERENCE_DB
    level = (decibels - FLOOR_DB) / -FLOOR_DB
    return (2 * LARGEST_MEL * level - LARGEST_MEL).clamp(-LARGEST_MEL, LARGEST_MEL).float()


@cache
def mel_filters() -> Tensor:
    """[80, 401] float64 weights of the frequencies 0, 20, ..., 8000 Hz in the mel filters, each of area 1 / Hz.

    Filter i rises from edge i to edge i + 1 and falls to edge i + 2. The edges are evenly spaced on Slaney's scale
    (Auditory Toolbox, 1998): linear below 1000 Hz, where 15 mel are reached, then 27 mel to each factor of 6.4.
    """
    knee, slope, octave = 1000.0, 3 / 200, 27 / math.log(6.4)
    low, high = (f * slope if f < knee else knee * slope + octave * math.log(f / knee) for f in MEL_RANGE)
    mels = torch.linspace(low, high, MEL_ROWS + 2, dtype=torch.float64)
    edges = torch.where(mels < knee * slope, mels / slope, knee * ((mels - knee * slope) / octave).exp())
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (edges[2:] - edges[:-2]))[:, None]


def mel_start(first_frame: int) -> int:
    """The mel column with which frame `first_frame` begins: int(80 * first_frame / 25)."""
    return 16 * first_frame // 5


def mel_window(mel: Tensor, first_frame: int) -> Tensor:
    """[80, 52] columns of mel [80, M] that belong to 16 frames from `first_frame` on, at 25 frames a second.

    Raises:
        ValueError: the sound has fewer columns, or begins later.
    """
    start = mel_start(first_frame)
    if mel.ndim != 2 or mel.shape[0] != MEL_ROWS or first_frame < 0 or start + MEL_COLUMNS > mel.shape[1]:
        raise ValueError(
            f"mel: got {list(mel.shape)}; {WINDOW} frames from frame {first_frame} on are columns {start} to "
            f"{start + MEL_COLUMNS} of [{MEL_ROWS}, M]; use windows that have sound"
        )
    return mel[:, start : start + MEL_COLUMNS]


# -------------------------------------------------------------------------------------------------------------- network


class ResidualBlock(nn.Module):
    """x + conv(conv(x)) with group norms in front, then a convolution with stride; a stride of 1 has none."""

    def __init__(self, channels_in: int, channels: int, stride: Stride) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels_in, NORM_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels, NORM_EPS)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else None
        self.downsample_conv = nn.Conv2d(channels, channels, 3, stride) if stride != (1, 1) else None
        # An axis that keeps its length gets a zero at both ends, one that shrinks only behind its end.
        self.padding = (int(stride[1] == 1), 1, int(stride[0] == 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, ...] of x [B, channels_in, height, width]."""
        added = self.conv1(F.silu(self.norm1(x)))
        added = self.conv2(F.silu(self.norm2(added)))
        x = added + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return x if self.downsample_conv is None else self.downsample_conv(F.pad(x, self.padding))


class SelfAttention(nn.Module):
    """Attention of all places to all, in 8 heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[B, place, width] of the same."""
        q, k, v = (
            projection(x).unflatten(-1, (ATTENTION_HEADS, -1)).transpose(1, 2)
            for projection in (self.to_q, self.to_k, self.to_v)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class GatedProjection(nn.Module):
    """a gelu(b), where a and b are the halves of a linear map."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """[B, place, inner] of x [B, place, width]."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Gated, four times as wide inside. The second of `net` has no weights: the official file counts a dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedProjection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, place, width] of the same."""
        return self.net(x)


class AttentionBlock(nn.Module):
    """A transformer block over the places of a picture, between 1x1 convolutions, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, width, NORM_EPS)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)
        self.conv_in = nn.Conv2d(width, width, 1)
        self.conv_out = nn.Conv2d(width, width, 1)
        self.attn = SelfAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, height, width of the picture] of the same."""
        places = self.conv_in(self.norm1(x)).flatten(2).transpose(1, 2)
        places = places + self.attn(self.norm2(places))
        places = places + self.ff(self.norm3(places))
        return x + self.conv_out(places.transpose(1, 2).reshape(x.shape))


class Encoder(nn.Module):
    """Residual blocks, each with its stride, some followed by attention; a non-negative output."""

    def __init__(
        self,
        channels_in: int,
        channels: Sequence[int],
        strides: Sequence[Stride],
        attention: Sequence[int],
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.conv_in = nn.Conv2d(channels_in, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for index, (before, after, stride) in enumerate(
            zip((channels[0], *channels[:-1]), channels, strides, strict=True)
        ):
            self.down_blocks.append(ResidualBlock(before, after, stride))
            if index in attention:
                self.down_blocks.append(AttentionBlock(after))
        self.norm_out = nn.GroupNorm(NORM_GROUPS, channels[-1], NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels[-1], height, width], all strides smaller, of x [B, channels_in, ...]."""
        x = apply_blocks(self.down_blocks, self.conv_in(x), self.checkpointing)
        return F.relu(self.norm_out(x))


class StableSyncNet(nn.Module):
    """Two encoders whose vectors agree where lips and sound do; by default of the sizes of stable_syncnet.pt.

    Args:
        audio_channels: of the seven residual blocks of the audio encoder, multiples of 32.
        visual_channels: of the eight of the visual encoder; the last is that of the audio encoder.
        checkpointing: compute the visual blocks again in the backward pass instead of keeping what is in them.
    """

    def __init__(
        self,
        audio_channels: Sequence[int] = AUDIO_CHANNELS,
        visual_channels: Sequence[int] = VISUAL_CHANNELS,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.audio_encoder = Encoder(1, audio_channels, AUDIO_STRIDES, AUDIO_ATTENTION, False)
        self.visual_encoder = Encoder(3 * WINDOW, visual_channels, VISUAL_STRIDES, VISUAL_ATTENTION, checkpointing)

    def forward(self, frames: Tensor, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of frames and sound, [B, C] each, float32, of length 1 and non-negative.

        Args:
            frames [B, 48, 128, 256]: the lower halves of 16 RGB frames in [-1, 1], channels of a frame together.
            mel [B, 1, 80, 52]: of the same 16 frames.
        """
        vision = judge(self.visual_encoder, frames)
        audio = judge(self.audio_encoder, mel)
        return F.normalize(vision.flatten(1), dim=1), F.normalize(audio.flatten(1), dim=1)


def load_syncnet(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
) -> StableSyncNet:
    """The official network, frozen, in float32, bfloat16 or float16.

    Raises:
        FileNotFoundError: `path` is not there.
        ValueError: it is no file of tensors, or another network's; the message lists what differs.
    """
    with torch.device("meta"):
        network = StableSyncNet(checkpointing=checkpointing)
    load_strictly(network, read_weights(path, SOURCE), path, SOURCE)
    freeze(network, device, dtype)
    return network


# ----------------------------------------------------------------------------------------------------------------- loss


class SyncLoss:
    """Mean over windows of 16 frames of -log c (form "cosine") or log(1 + exp(-c)) ("logits"), c the cosine.

    "cosine" is LatentSync's: the binary cross entropy of c itself against 1. Both vectors are non-negative, so that c
    is in [0, 1]. Its gradient -1 / c has no bound near 0; below c = 0.001 the loss goes on as its tangent,
    -log 0.001 + (0.001 - c) / 0.001, whose gradient is -1000: it neither vanishes nor explodes, and above it the loss
    is LatentSync's. "logits" takes c for a logit, as some reproductions do; it is between 0.31 and 0.69 then and
    its gradient nearly the same for all c. It is there for comparison.

    A plain object: set as an attribute of a module it does not become a part of that module.

    Args:
        network: frozen (`load_syncnet`).
        form: "cosine" or "logits".
        stride: from the start of a window to that of the next, in frames.
    """

    def __init__(self, network: StableSyncNet, form: Form = "cosine", stride: int = WINDOW) -> None:
        if form not in ("cosine", "logits"):
            raise ValueError(f'form: got {form!r}, wanted "cosine" or "logits"')
        self.network = network
        self.form = form
        self.stride = stride

    def windows(self, frames: int, mel: Tensor, first_frame: int = 0) -> tuple[range, ...]:
        """The windows of a clip that have sound to their end; others are not used, which is logged.

        Args:
            frames: how many the clip has, 16 or more.
            mel [80, M]: of the whole sound.
            first_frame: the clip's first frame, counted from the start of the sound, 25 a second.

        Raises:
            ValueError: fewer than 16 frames, or no window has sound.
        """
        found = windows(frames, WINDOW, self.stride)
        heard = tuple(window for window in found if mel_start(first_frame + window[0]) + MEL_COLUMNS <= mel.shape[1])
        if not heard:
            raise ValueError(
                f"mel: {mel.shape[1]} columns end before the first {WINDOW} frames from frame {first_frame} on do, at "
                f"column {mel_start(first_frame) + MEL_COLUMNS}; give the sound of the whole clip, or drop the clip"
            )
        if len(heard) < len(found):
            logger.warning("the sound ends early: %d of %d windows have none", len(found) - len(heard), len(found))
        return heard

    def window_loss(self, frames: Tensor, mel: Tensor) -> Tensor:
        """The loss of one window, a scalar float32: the mean over B.

        Args:
            frames [B, 3, 16, H, W]: RGB in [-1, 1]. Resized to 256x256 (bicubic); the lower half is looked at.
            mel [B, 80, 52]: from `mel_window`.

        Raises:
            ValueError: other shapes.
        """
        check_frames(frames, WINDOW)
        if mel.shape != (len(frames), MEL_ROWS, MEL_COLUMNS):
            raise ValueError(f"mel: got {list(mel.shape)}, wanted {[len(frames), MEL_ROWS, MEL_COLUMNS]}")
        mouths = lower_half(resize(frames.float(), PICTURE_SIZE))
        vision, audio = self.network(mouths.transpose(1, 2).flatten(1, 2), mel[:, None].to(frames.device))
        cosine = (vision * audio).sum(dim=1)
        return (F.softplus(-cosine) if self.form == "logits" else cosine_loss(cosine)).mean()

    def __call__(self, frames: Tensor, mels: Sequence[Tensor], first_frames: Sequence[int]) -> Tensor:
        """The mean of `window_loss` over all windows of all clips, a scalar float32.

        Args:
            frames [B, 3, F, H, W]: RGB in [-1, 1], F of 16 or more.
            mels: of each clip the mel [80, M] of its whole sound.
            first_frames: of each clip its first frame, counted from the start of its sound.

        Raises:
            ValueError: other shapes, fewer than 16 frames, a clip without sound.
        """
        check_frames(frames)
        losses = [
            self.window_loss(clip[None, :, window.start : window.stop], mel_window(mel, first + window.start)[None])
            for clip, mel, first in zip(frames, mels, first_frames, strict=True)
            for window in self.windows(frames.shape[2], mel, first)
        ]
        return torch.stack(losses).mean()


def cosine_loss(cosine: Tensor) -> Tensor:
    """-log c of cosines c, and its tangent at LEAST_COSINE below it; no less than 0 where rounding makes c > 1."""
    cosine = cosine.clamp(max=1)
    return (LEAST_COSINE - cosine).clamp(min=0) / LEAST_COSINE - cosine.clamp(min=LEAST_COSINE).log()
