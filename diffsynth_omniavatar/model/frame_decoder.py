"""The decoder of a Wan 2.1 VAE one latent frame at a time, with an explicit state and little to keep for its backward.

Every causal convolution keeps the last two frames of its input for the next latent frame. The VAE is frozen, so that a
convolution's backward needs its weights alone, and norm and activation before it are cheap to compute again: the graph
holds one tensor for each convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv3d_input

from ..media.timeline import video_frames

KEPT = 2
"""Frames of its input that a causal convolution of three frames keeps."""


def latent_of(frame: int) -> int:
    """The latent frame that holds a video frame: 0 the first, and four frames each of the others."""
    return (frame + 3) // 4


def frames_of(latent: int) -> slice:
    """The video frames of a latent frame."""
    return slice(max(4 * latent - 3, 0), 4 * latent + 1)


@dataclass
class DecoderState:
    """What goes from a latent frame to the next, and, of its gradient, back: an entry for each causal convolution.

    Attributes:
        kept: the last two frames of its input, [B, c, 2, h, w]; zeros before the first latent frame.
        wanted: gradient of the frames that it kept, while going back.
        keeps: False in the last latent frame of a segment that is decoded again: nobody reads what it would keep.
    """

    kept: list[Tensor | None]
    wanted: list[Tensor | None] = field(default_factory=list)
    keeps: bool = True

    def join(self, index: int, frames: Tensor) -> Tensor:
        """The kept frames and these; keep the last of them."""
        before = self.kept[index]
        if before is None:
            batch, channels, _, *size = frames.shape
            before = frames.new_zeros(batch, channels, KEPT, *size)
        joined = torch.cat([before, frames], dim=2)
        self.kept[index] = joined[:, :, -KEPT:].clone() if self.keeps else None
        return joined

    def split(self, index: int, gradient: Tensor) -> Tensor:
        """The gradient of `join`'s frames from that of what it gave."""
        wanted = self.wanted[index]
        if wanted is not None:
            gradient[:, :, -KEPT:] += wanted
        self.wanted[index] = gradient[:, :, :KEPT].contiguous()
        return gradient[:, :, KEPT:]


class _Convolution:
    """A frozen convolution and what comes before it; causal ones have a place in the state.

    Operations and their order are the host's, padding too, so that not even roundings differ.
    """

    def __init__(self, before: nn.Module, convolution: Any, index: int | None) -> None:
        self.before, self.index = before, index
        self.weight: Tensor = convolution.weight
        self.bias: Tensor = convolution.bias
        self.convolve: Any = convolution._conv_forward
        height, width = (side // 2 for side in self.weight.shape[-2:])
        self.border = (width, width, height, height)

    def __call__(self, x: Tensor, state: DecoderState) -> Tensor:
        out: Tensor = _ConvolutionFunction.apply(x, self, state)
        return out

    def forward(self, x: Tensor, state: DecoderState) -> Tensor:
        wide = self.before(x)
        if self.index is None:
            return F.conv2d(wide, self.weight, self.bias, padding=self.border[::-2])
        return self.convolve(F.pad(state.join(self.index, wide), self.border), self.weight, self.bias)

    def backward(self, gradient: Tensor, state: DecoderState) -> Tensor:
        """The gradient of what `before` gives, from that of the result."""
        if self.index is None:
            pictures, _, *size = gradient.shape
            shape = (pictures, self.weight.shape[1], *size)
            return conv2d_input(shape, self.weight, gradient, padding=self.border[::-2])
        left, right, top, bottom = self.border
        batch, _, frames, height, width = gradient.shape
        shape = (batch, self.weight.shape[1], frames + KEPT, height + top + bottom, width + left + right)
        wide = conv3d_input(shape, self.weight, gradient)
        return state.split(self.index, wide[..., top : top + height, left : left + width])


class _ConvolutionFunction(torch.autograd.Function):
    """Saves only the input, before norm and activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Convolution, state: DecoderState) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.state = layer, state
        return layer.forward(x, state)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        gradient = ctx.layer.backward(grads[0], ctx.state)
        return _vjp([ctx.layer.before], x, [gradient]), None, None


class _ResidualFunction(torch.autograd.Function):
    """Saves only the inputs of the two convolutions, before norm and activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Residual, state: DecoderState) -> Tensor:
        one, two = layer.convolutions
        between = one.forward(x, state)
        ctx.save_for_backward(x, between)
        ctx.layer, ctx.state = layer, state
        return two.forward(between, state) + layer.shortcut(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, between = ctx.saved_tensors
        one, two = ctx.layer.convolutions
        gradient = _vjp([two.before], between, [two.backward(grads[0], ctx.state)])
        gradient = one.backward(gradient, ctx.state)
        return _vjp([ctx.layer.shortcut, one.before], x, [grads[0], gradient]), None, None


def _vjp(functions: Sequence[nn.Module], x: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """The gradient of x, from those of what the functions give for it; they are computed again."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        results = [function(leaf) for function in functions]
    (gradient,) = torch.autograd.grad(results, leaf, gradients)
    return gradient


class _Layer(Protocol):
    """A layer of the decoder: how many causal convolutions follow one another in it, and whether it doubles time."""

    causal: int
    doubles_time: bool

    def __call__(self, x: Tensor, state: DecoderState, first: bool) -> Tensor: ...


class _Single:
    """A causal convolution that stands alone."""

    causal, doubles_time = 1, False

    def __init__(self, convolution: _Convolution) -> None:
        self.convolution = convolution

    def __call__(self, x: Tensor, state: DecoderState, first: bool) -> Tensor:
        return self.convolution(x, state)


class _Residual:
    """The host's ResidualBlock."""

    causal, doubles_time = 2, False

    def __init__(self, shortcut: nn.Module, convolutions: Sequence[_Convolution]) -> None:
        self.shortcut, self.convolutions = shortcut, convolutions

    def __call__(self, x: Tensor, state: DecoderState, first: bool) -> Tensor:
        out: Tensor = _ResidualFunction.apply(x, self, state)
        return out


class _Plain:
    """A layer that keeps nothing: attention within a frame."""

    causal, doubles_time = 0, False

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, x: Tensor, state: DecoderState, first: bool) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class _Upsample:
    """The host's Resample: twice the height and width, and in some twice the frames, but for the first latent frame."""

    def __init__(self, in_time: _Convolution | None, in_space: _Convolution) -> None:
        self.in_time, self.in_space = in_time, in_space
        self.causal, self.doubles_time = (0, False) if in_time is None else (1, True)

    def __call__(self, x: Tensor, state: DecoderState, first: bool) -> Tensor:
        if self.in_time is not None and not first:
            # Channels [2 c] are two frames of c channels.
            x = self.in_time(x, state).unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        pictures = self.in_space(x.transpose(1, 2).flatten(0, 1), state)
        return pictures.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


class FrameDecoder:
    """The decoder of a Wan 2.1 VAE one latent frame at a time, with the values of the host's and an explicit state.

    Args:
        vae: the host's WanVideoVAE.

    Attributes:
        dtype: of weights, frames and kept frames.
        reach: for each layer, how many latent frames before the first one that is wanted it must see. A layer near the
            end sees few of them, so that it can begin late without a change of the result.

    Raises:
        ValueError: the VAE is of another kind.
    """

    def __init__(self, vae: Any) -> None:
        self.vae, self.decoder = vae, vae.model.decoder
        self.causal_convolutions = 0
        decoder = self.decoder
        self.layers: list[_Layer] = [
            _Single(self._causal(nn.Identity(), decoder.conv1)),
            *map(self._layer, decoder.middle),
            *map(self._layer, decoder.upsamples),
            _Single(self._causal(decoder.head[:-1], decoder.head[-1])),
        ]
        self.reach = _reach(self.layers)
        self.dtype: torch.dtype = decoder.conv1.weight.dtype

    def _causal(self, before: nn.Module, convolution: nn.Module) -> _Convolution:
        self.causal_convolutions += 1
        return _Convolution(before, convolution, self.causal_convolutions - 1)

    def _layer(self, layer: Any) -> _Layer:
        """The layer of a host's one, told by its parts, which both generations of the host have."""
        if hasattr(layer, "residual"):
            parts = layer.residual
            return _Residual(layer.shortcut, [self._causal(parts[:2], parts[2]), self._causal(parts[3:6], parts[6])])
        if hasattr(layer, "resample"):
            in_time = self._causal(nn.Identity(), layer.time_conv) if hasattr(layer, "time_conv") else None
            return _Upsample(in_time, _Convolution(layer.resample[0], layer.resample[1], None))
        if hasattr(layer, "to_qkv"):
            return _Plain(layer)
        raise ValueError(f"the VAE's decoder has a {type(layer).__name__}; give the VAE of Wan 2.1")

    def start(self) -> DecoderState:
        """The state before the first latent frame."""
        return DecoderState(kept=[None] * self.causal_convolutions, wanted=[None] * self.causal_convolutions)

    def inputs(self, x0: Tensor) -> Tensor:
        """Latents [B, 16, T, h, w] without their normalisation and through the VAE's `conv2`, as `step` takes them."""
        latents = x0.to(self.dtype)
        mean, inverse_std = (part.to(latents).view(1, -1, 1, 1, 1) for part in self.vae.scale)
        out: Tensor = self.vae.model.conv2(latents / inverse_std + mean)
        return out

    def step(self, inputs: Tensor, latent: int, state: DecoderState, wanted_from: int = 0) -> Tensor:
        """The video frames [B, 3, 1 or 4, H, W] of one latent frame; the state goes on.

        Args:
            inputs: of this latent frame, [B, 16, 1, h, w].
            latent: its number.
            state: after the latent frame before.
            wanted_from: first latent frame whose frames are wanted. Layers that do not count yet are left out: before
                it, the result is what the last counted layer gives.
        """
        x = inputs
        for layer, reach in zip(self.layers, self.reach, strict=True):
            if latent < wanted_from - reach:
                break
            x = layer(x, state, latent == 0)
        return x


def _reach(layers: Sequence[_Layer]) -> list[int]:
    """For each layer, how many latent frames before the wanted ones its inputs count in.

    Each causal convolution looks KEPT frames back, at its own number of frames a latent frame.
    """
    frames, rate = 0, 2 ** sum(layer.doubles_time for layer in layers)
    reach = []
    for layer in reversed(layers):
        if layer.doubles_time:
            frames, rate = -(-frames // 2), rate // 2
        frames += KEPT * layer.causal
        reach.append(-(-frames // rate))
    return reach[::-1]


@torch.no_grad()
def decode_video(vae: Any, latents: Tensor, on_frames: Callable[[Tensor], None] | None = None) -> Tensor:
    """The video of latents [B, 16, T, h, w], clamped: [B, 3, 4T-3, H, W] on their device, in the VAE's number format.

    It is that of the host's `vae.single_decode`, which copies all frames before for each new latent frame; here each
    goes to its place, so that beside the video only one latent frame's worth of memory is taken.

    Args:
        on_frames: called with the frames [B, 3, 1 or 4, H, W] of each latent frame, in order. On a GPU they are still
            being computed then.

    Raises:
        ValueError: as `FrameDecoder`.
    """
    decoder = FrameDecoder(vae)
    inputs, state, video = decoder.inputs(latents), decoder.start(), None
    for latent in range(latents.shape[2]):
        frames = decoder.step(inputs[:, :, latent : latent + 1], latent, state)
        if video is None:
            video = frames.new_empty(*frames.shape[:2], video_frames(latents.shape[2]), *frames.shape[3:])
        part = video[:, :, frames_of(latent)]
        torch.clamp(frames, -1, 1, out=part)
        if on_frames is not None:
            on_frames(part)
    assert video is not None
    return video


@torch.no_grad()
def decode_frames(vae: Any, latents: Tensor, start: int, stop: int) -> Tensor:
    """The video frames start .. stop-1 of latents [B, 16, T, h, w], not clamped: [B, 3, stop - start, H, W].

    They are those of the host's `vae.model.decode`; what comes after the last one is not decoded.

    Raises:
        ValueError: as `FrameDecoder`.
    """
    first, last = latent_of(start), latent_of(stop - 1)
    decoder = FrameDecoder(vae)
    with torch.autocast(latents.device.type, enabled=False):
        inputs, state, frames = decoder.inputs(latents[:, :, : last + 1]), decoder.start(), []
        for latent in range(last + 1):
            out = decoder.step(inputs[:, :, latent : latent + 1], latent, state, first)
            if latent >= first:
                frames.append(out)
    offset = frames_of(first).start
    return torch.cat(frames, dim=2)[:, :, start - offset : stop - offset]
