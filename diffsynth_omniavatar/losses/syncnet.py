"""StableSyncNet: two encoders, of 16 frames and of their sound, that agree where lips and sound do.

A visual and an audio encoder of the same kind (residual blocks with strides, attention after two of them) each give a
vector of length 1. Source: StableSyncNet of LatentSync (https://github.com/bytedance/LatentSync,
https://arxiv.org/abs/2412.09262), rebuilt with the same names of weights, so that its stable_syncnet.pt loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frozen import apply_blocks, judge, load_frozen
from .mel import WINDOW

SOURCE = "get stable_syncnet.pt of LatentSync: huggingface.co/ByteDance/LatentSync-1.6"

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
    return load_frozen(lambda: StableSyncNet(checkpointing=checkpointing), path, SOURCE, device, dtype)
