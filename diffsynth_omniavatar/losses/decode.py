"""Losses on decoded frames, and their exact gradient with respect to the latents, in bounded memory.

The Wan VAE decodes latent frame by latent frame, each with frames that are kept of the one before (`frame_decoder`).
So a clip is decoded without a graph, the kept frames being stored where a segment of latent frames begins; the losses
are taken window by window; then the segments are decoded again from the last to the first, each with a graph of its
own, and what a segment's convolutions want of the frames kept for them is handed to the segment before.

At the size of the Wan VAE, 512x512 pixels, bf16, a latent frame has 1.1 GiB of kept frames and 2.2 GiB of graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..media.timeline import video_frames
from ..model.frame_decoder import DecoderState, FrameDecoder, frames_of, latent_of

logger = logging.getLogger(__name__)

AUX_MEMORY = ("auto", "offload", "segments", "frame")
"""How the decoder's backward gets what it needs.

offload: the kept frames go to pinned CPU memory, 1.1 GiB a segment at 512x512, while the GPU computes.
segments: they stay on the device.
frame: one autograd graph with a checkpoint for each latent frame, the plain way to do it: a reference.
auto: offload on CUDA, otherwise segments.
"""

LATENT_RANGE = 10.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """A loss of the video frames start .. stop-1.

    A mean over many frames can be cut into windows, each giving its share of the mean: they are taken one after
    another, so that only one window's graph is alive at a time.
    """

    name: str
    start: int
    stop: int
    loss: Callable[[Tensor], Tensor]
    """Frames [B, 3, stop - start, H, W], not clamped, in the VAE's number format -> a scalar."""
    weight: float = 1.0
    """In the total."""


@dataclass(frozen=True, kw_only=True)
class DecodedLosses:
    """What the windows gave; nothing here has a graph.

    Attributes:
        values: sum of the losses of each name, without the weights, float32 scalars.
        total: sum of all with their weights, a float32 scalar.
        gradient: of the total with respect to x_0, [B, 16, T, h, w] float32.
    """

    values: dict[str, Tensor]
    total: Tensor
    gradient: Tensor


def choose_memory(mode: str, device: torch.device) -> str:
    """The mode that `--aux_memory` means on this device; ValueError for an unknown one."""
    if mode not in AUX_MEMORY:
        raise ValueError(f"--aux_memory {mode}: choose one of {', '.join(AUX_MEMORY)}")
    if mode == "offload" and device.type != "cuda":
        raise ValueError(f"--aux_memory offload is for a CUDA device, and this is {device}: choose segments")
    chosen = mode if mode != "auto" else "offload" if device.type == "cuda" else "segments"
    logger.info("losses on decoded frames: --aux_memory %s is %s on %s", mode, chosen, device.type)
    return chosen


def predicted_latents(noisy: Tensor, prediction: Tensor, sigma: Tensor | float, known: Tensor | None = None) -> Tensor:
    """x_0 = x_t - sigma v within +-10, float32, with the known frames in their place.

    Args:
        noisy: x_t, [B, 16, T, h, w].
        prediction: of the flow v, [B, 16, T, h, w]; the gradient goes to it.
        sigma: the noise level that made x_t, of all or of each clip [B, 1, 1, 1, 1].
        known: clean latents of the first frames, [B, 16, K, h, w], which are not predicted. x_t does not always have
            them: where the recipe drops the prefix, there is noise in their place.
    """
    x0 = (noisy.float() - sigma * prediction.float()).clamp(-LATENT_RANGE, LATENT_RANGE)
    return x0 if known is None else torch.cat([known.to(x0), x0[:, :, known.shape[2] :]], dim=2)


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x0: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gradient.to(x0))
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.saved_tensors[0], None, None


def surrogate_loss(x0: Tensor, losses: DecodedLosses) -> Tensor:
    """A scalar with the value `losses.total` and the gradient `losses.gradient` with respect to x0 [B, 16, T, h, w].

    So the decoder's graph is gone before the denoiser's backward begins.
    """
    loss: Tensor = _Surrogate.apply(x0, losses.gradient, losses.total)
    return loss


class _Store:
    """Kept frames at the starts of segments, where they are."""

    def __init__(self) -> None:
        self.places: dict[int, list[Tensor | None]] = {}

    def put(self, latent: int, kept: Sequence[Tensor | None]) -> None:
        self.places[latent] = list(kept)

    def end_of_puts(self) -> None:
        """To be called after the last `put`."""

    def load(self, latent: int) -> None:
        """Begin to bring back what was put, so that `take` need not wait."""

    def take(self, latent: int) -> list[Tensor | None]:
        return self.places.pop(latent)


class _PinnedStore(_Store):
    """In pinned CPU memory; copies run in a stream of their own, beside the computation.

    The device's memory stays bounded although the CPU queues work far ahead: tensors that are being copied are held
    until the computing stream waits for the copy, so that they are free in the order of that stream. (`record_stream`
    would free them only when the CPU sees that the copy is done.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.stream = torch.cuda.Stream()
        self.leaving: tuple[Sequence[Tensor | None], torch.cuda.Event] | None = None
        self.loading: dict[int, tuple[list[Tensor | None], torch.cuda.Event]] = {}

    def put(self, latent: int, kept: Sequence[Tensor | None]) -> None:
        self.end_of_puts()
        pinned = [None if part is None else torch.empty_like(part, device="cpu", pin_memory=True) for part in kept]
        self.leaving = list(kept), self._copy(kept, pinned)
        self.places[latent] = pinned

    def end_of_puts(self) -> None:
        if self.leaving is not None:
            torch.cuda.current_stream().wait_event(self.leaving[1])
            self.leaving = None

    def load(self, latent: int) -> None:
        pinned = self.places.pop(latent)
        device = self.stream.device
        kept = [None if part is None else torch.empty_like(part, device=device) for part in pinned]
        self.loading[latent] = kept, self._copy(pinned, kept)

    def take(self, latent: int) -> list[Tensor | None]:
        if latent not in self.loading:
            self.load(latent)
        kept, loaded = self.loading.pop(latent)
        torch.cuda.current_stream().wait_event(loaded)
        return kept

    def _copy(self, parts: Sequence[Tensor | None], to: Sequence[Tensor | None]) -> torch.cuda.Event:
        """Queue a copy behind all computation that is queued already; the event is its end."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for source, target in zip(parts, to, strict=True):
                if source is not None and target is not None:
                    target.copy_(source, non_blocking=True)
            return self.stream.record_event()


class _Segments:
    """A decode without a graph, and its backward, for which segments of latent frames are decoded again."""

    def __init__(self, decoder: FrameDecoder, inputs: Tensor, wanted_from: int, length: int, offload: bool) -> None:
        self.decoder, self.inputs, self.wanted_from = decoder, inputs.detach(), wanted_from
        latents = range(inputs.shape[2])
        self.segments = [latents[start : start + length] for start in latents[::length]]
        self.store = _PinnedStore() if offload else _Store()

    @torch.no_grad()
    def frames(self) -> Tensor:
        """From the first one of latent frame `wanted_from` on, [B, 3, f, H, W]."""
        state, frames = self.decoder.start(), []
        for segment in self.segments:
            self.store.put(segment[0], state.kept)
            for latent in segment:
                out = self._step(self.inputs[:, :, latent : latent + 1], latent, state)
                if latent >= self.wanted_from:
                    frames.append(out)
        self.store.end_of_puts()
        return torch.cat(frames, dim=2)

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient of the inputs, float32, from that of the frames."""
        total = torch.zeros_like(self.inputs, dtype=torch.float32)
        state = self.decoder.start()
        offset = frames_of(self.wanted_from).start
        for number in reversed(range(len(self.segments))):
            segment = self.segments[number]
            state.kept = self.store.take(segment[0])
            if number > 0:
                self.store.load(self.segments[number - 1][0])
            graphs = list(self._graphs(segment, state))
            while graphs:
                latent, leaf, out = graphs.pop()
                wanted = torch.zeros_like(out)
                if latent >= self.wanted_from:
                    span = frames_of(latent)
                    wanted = gradient[:, :, span.start - offset : span.stop - offset].to(out.dtype)
                (part,) = torch.autograd.grad(out, leaf, wanted)
                total[:, :, latent] = part[:, :, 0]
                del out
        return total

    def _graphs(self, segment: range, state: DecoderState) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Number, input and result of each latent frame of a segment, each with a graph of its own."""
        for latent in segment:
            leaf = self.inputs[:, :, latent : latent + 1].detach().requires_grad_()
            state.keeps = latent != segment[-1]
            with torch.enable_grad():
                yield latent, leaf, self._step(leaf, latent, state)

    def _step(self, inputs: Tensor, latent: int, state: DecoderState) -> Tensor:
        return self.decoder.step(inputs, latent, state, self.wanted_from)


class _Checkpoints:
    """The host's own decoder with a checkpoint for each latent frame: one graph, the reference of the other modes."""

    def __init__(self, decoder: FrameDecoder, inputs: Tensor, wanted_from: int) -> None:
        self.decoder, self.inputs, self.wanted_from = decoder.decoder, inputs.detach().requires_grad_(), wanted_from

    def frames(self) -> Tensor:
        """As those of `_Segments`."""
        kept: list[Any] = [None] * sum(isinstance(module, nn.Conv3d) for module in self.decoder.modules())
        frames = []
        with torch.enable_grad():
            for latent in range(self.inputs.shape[2]):
                out, kept = checkpoint(self._step, self.inputs[:, :, latent : latent + 1], kept, use_reentrant=False)
                if latent >= self.wanted_from:
                    frames.append(out)
            self.graph = torch.cat(frames, dim=2)
        return self.graph.detach()

    def backward(self, gradient: Tensor) -> Tensor:
        """As that of `_Segments`."""
        (total,) = torch.autograd.grad(self.graph, self.inputs, gradient.to(self.graph.dtype))
        return total.float()

    def _step(self, inputs: Tensor, kept: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        after = list(kept)
        out = self.decoder(inputs, feat_cache=after, feat_idx=[0])
        return (out[0] if isinstance(out, tuple) else out), after  # DiffSynth 2.x gives the state too


def _take_losses(frames: Tensor, offset: int, windows: Sequence[Window]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Values, total, and the total's gradient [B, 3, f, H, W] in float32; `frames` begin at video frame `offset`."""
    values: dict[str, Tensor] = {}
    total = torch.zeros((), device=frames.device)
    gradient = torch.zeros_like(frames, dtype=torch.float32)
    for window in windows:
        span = slice(window.start - offset, window.stop - offset)
        leaf = frames[:, :, span].detach().requires_grad_()
        with torch.enable_grad():
            loss = window.loss(leaf).float()
            (part,) = torch.autograd.grad(window.weight * loss, leaf)
        gradient[:, :, span] += part
        values[window.name] = values.get(window.name, 0) + loss.detach()
        total += window.weight * loss.detach()
    return values, total, gradient


def decode_with_losses(
    vae: Any, x0: Tensor, windows: Sequence[Window], memory: str = "segments", segment_frames: int = 1
) -> DecodedLosses:
    """Decode latents, take losses of windows of frames, and give the exact gradient of their weighted sum.

    Only latent frames up to the last one that a window looks at are decoded, and late layers of the decoder begin as
    late as the first window allows. Autocast is off within. The losses are those of the host's
    `vae.model.decode(x0, vae.scale)`.

    Args:
        vae: the host's WanVideoVAE, frozen, on the device of x0.
        x0: [B, 16, T, h, w], any float format; it is decoded in that of the VAE.
        windows: of the 4 T - 3 video frames.
        memory: "offload", "segments" or "frame", see `AUX_MEMORY` and `choose_memory`.
        segment_frames: latent frames of a segment. More of them need fewer stores of kept frames and a larger graph.

    Raises:
        ValueError: no windows, a window outside of the video, no latent frame in a segment, a VAE that trains or that
            `FrameDecoder` does not take.
    """
    _check(x0, windows, segment_frames)
    if any(parameter.requires_grad for parameter in vae.parameters()):
        raise ValueError("the VAE's weights train, but losses on frames need it frozen: vae.requires_grad_(False)")
    first, last = (latent_of(frame) for frame in (min(w.start for w in windows), max(w.stop for w in windows) - 1))
    decoder = FrameDecoder(vae)
    vae.model.clear_cache()  # kept frames of the host's last encode or decode
    with torch.autocast(x0.device.type, enabled=False):
        leaf = x0.detach().float().requires_grad_()
        with torch.enable_grad():
            inputs = decoder.inputs(leaf[:, :, : last + 1])
        way: _Segments | _Checkpoints
        if memory == "frame":
            way = _Checkpoints(decoder, inputs, first)
        else:
            way = _Segments(decoder, inputs, first, segment_frames, offload=memory == "offload")
        values, total, wanted = _take_losses(way.frames(), frames_of(first).start, windows)
        (gradient,) = torch.autograd.grad(inputs, leaf, way.backward(wanted).to(inputs.dtype))
    return DecodedLosses(values=values, total=total, gradient=gradient)


def _check(x0: Tensor, windows: Sequence[Window], segment_frames: int) -> None:
    frames = video_frames(x0.shape[2])
    if not windows:
        raise ValueError("no windows of frames; without losses there is nothing to decode for")
    for window in windows:
        if not 0 <= window.start < window.stop <= frames:
            raise ValueError(
                f"{window.name}: frames {window.start} to {window.stop} of a video of {frames}; "
                "choose 0 <= start < stop <= 4 T - 3"
            )
    if segment_frames < 1:
        raise ValueError(f"segments of {segment_frames} latent frames; a segment has at least one")
