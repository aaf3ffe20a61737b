"""Does a video move like the real one? The distance of VideoMAE features of 16 frames, LatentSync's TREPA.

    loss = TrepaLoss(load_videomae("vit_g_hybrid_pt_1200e_ssv2_ft.pth", "cuda", torch.bfloat16))
    value = loss(predicted, target)

Source: trepa/loss.py of LatentSync (https://github.com/bytedance/LatentSync, https://arxiv.org/abs/2412.09262) and the
ViT of VideoMAE v2 (https://github.com/OpenGVLab/VideoMAEv2, https://arxiv.org/abs/2303.16727), rebuilt with the same
names of weights, so that its file loads. transformers' VideoMAE is the same but for the last norm's eps (1e-5); it
keeps the biases under names that differ between its releases, and checkpoints only in training mode.

Memory in 16 bits: 2 GB of weights, and for the gradient of a window 4.4 GB, or 0.4 GB with checkpointing.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .frozen import apply_blocks, judge, load_frozen
from .windows import check_frames, check_same, resize, windows

SOURCE = (
    "get vit_g_hybrid_pt_1200e_ssv2_ft.pth of VideoMAE v2, "
    "also in huggingface.co/ByteDance/LatentSync-1.5 under auxiliary/"
)

WINDOW = 16
TUBELET = 2
PATCH = 14
CLASSES = 174
NORM_EPS = 1e-6


class Attention(nn.Module):
    """Attention of all tokens to all; queries and values have a bias, keys have none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, token, width] of the same."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        heads = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear maps with GELU between them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, token, width] of the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each with a norm in front, added to their input."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, NORM_EPS)
        self.mlp = Mlp(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """[B, token, width] of the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Two frames by 14x14 pixels to a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        patch = (TUBELET, PATCH, PATCH)
        self.proj = nn.Conv3d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """[B, token, width] of frames [B, 3, 16, H, W]; time outermost, then rows."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VideoMAE(nn.Module):
    """VideoMAE v2's fine-tuned ViT; by default ViT-g, of the sizes of vit_g_hybrid_pt_1200e_ssv2_ft.pth.

    Args:
        width, depth, heads, inner: of the transformer; inner is the MLP's width.
        size: of the pictures, in pixels, a multiple of 14.
        checkpointing: compute the blocks again in the backward pass instead of keeping what is in them.
    """

    def __init__(
        self,
        width: int = 1408,
        depth: int = 40,
        heads: int = 16,
        inner: int = 6144,
        size: int = 224,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbedding(width)
        self.blocks = nn.ModuleList(Block(width, heads, inner) for _ in range(depth))
        self.fc_norm = nn.LayerNorm(width, NORM_EPS)
        self.head = nn.Linear(width, CLASSES)  # the features do not go through it; the file has it

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, width] of frames [B, 3, 16, size, size] in [0, 1]: the normed mean of the tokens, in float32."""
        tokens = self.patch_embed(x)
        tokens = tokens + sinusoids(tokens.shape[1], tokens.shape[2], tokens.device).to(tokens)
        mean = apply_blocks(self.blocks, tokens, self.checkpointing).float().mean(dim=1)
        # In float32: the features of two clips differ by little, and rounding each would add to their distance.
        return F.layer_norm(mean, mean.shape[1:], self.fc_norm.weight.float(), self.fc_norm.bias.float(), NORM_EPS)


def sinusoids(positions: int, width: int, device: torch.device) -> Tensor:
    """[positions, width] float32 with sin(p / 10000^(i / width)) in even columns i and the cosine of it in i + 1.

    Attention Is All You Need, section 3.5. The files do not hold it.
    """
    position = torch.arange(positions, dtype=torch.float64, device=device)[:, None]
    column = torch.arange(0, width, 2, dtype=torch.float64, device=device)
    angle = position / 10000 ** (column / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()


def load_videomae(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = True,
) -> VideoMAE:
    """The official ViT-g, frozen, in float32, bfloat16 or float16 (LatentSync's).

    Raises:
        FileNotFoundError: `path` is not there.
        ValueError: it is no file of tensors, or another network's; the message lists what differs.
    """
    return load_frozen(lambda: VideoMAE(checkpointing=checkpointing), path, SOURCE, device, dtype)


class TrepaLoss:
    """Mean over windows of 16 frames of mean((f - g)^2), f and g the features of prediction and target, of length 1.

    The mean is over the features too, 1408 of them: it is at most 4 / 1408, hence the weight of 10. Pictures are
    resized to 224x224 (bicubic), brought to [0, 1] and cut to it; there is no normalisation by ImageNet's mean.

    A plain object: set as an attribute of a module it does not become a part of that module.

    Args:
        network: frozen (`load_videomae`).
        stride: from the start of a window to that of the next, in frames.
    """

    def __init__(self, network: VideoMAE, stride: int = WINDOW) -> None:
        self.network = network
        self.stride = stride

    def windows(self, frames: int) -> tuple[range, ...]:
        """The windows of a clip; frames behind the last one are not used, which is logged.

        Raises:
            ValueError: fewer than 16 frames.
        """
        return windows(frames, WINDOW, self.stride)

    def window_loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The loss of one window, a scalar float32: the mean over B, with a gradient into `predicted` alone.

        Args:
            predicted, target [B, 3, 16, H, W]: RGB in [-1, 1].

        Raises:
            ValueError: other shapes, or two that differ.
        """
        check_frames(predicted, WINDOW)
        check_same(predicted, target)
        with torch.no_grad():
            wanted = self._features(target)
        return F.mse_loss(self._features(predicted), wanted)

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The mean of `window_loss` over all windows, a scalar float32.

        Args:
            predicted, target [B, 3, F, H, W]: RGB in [-1, 1], F of 16 or more.

        Raises:
            ValueError: other shapes, two that differ, or fewer than 16 frames.
        """
        check_same(predicted, target)
        losses = [
            self.window_loss(predicted[:, :, window.start : window.stop], target[:, :, window.start : window.stop])
            for window in self.windows(predicted.shape[2])
        ]
        return torch.stack(losses).mean()

    def _features(self, frames: Tensor) -> Tensor:
        pictures = (resize(frames.float(), self.network.size) / 2 + 0.5).clamp(0, 1)
        return F.normalize(judge(self.network, pictures), dim=1)
