"""Losses on decoded frames: the values and gradients of the host's own decode, whatever the memory mode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth_omniavatar.losses.decode import (
    Window,
    choose_memory,
    decode_with_losses,
    predicted_latents,
    surrogate_loss,
)
from diffsynth_omniavatar.model.frame_decoder import FrameDecoder, decode_video, frames_of, latent_of
from diffsynth_omniavatar.model.small_family import SmallVAE
from diffsynth_omniavatar.nano.family import randomise

RELATIVE = 1e-6
"""Of the largest gradient: sums in float32, in another order."""


def random_vae() -> SmallVAE:
    vae = SmallVAE(dim=4)
    vae.load_state_dict(randomise(vae, torch.Generator().manual_seed(0)))
    return vae.requires_grad_(False)


@pytest.fixture(scope="module")
def vae() -> SmallVAE:
    return random_vae()


@pytest.fixture(scope="module")
def exact_vae() -> SmallVAE:
    """In float64, so that what remains is the float32 of the gradient that is handed out."""
    return random_vae().double()


def latents(frames: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, frames, 2, 2, generator=torch.Generator().manual_seed(1))


def loss_of(start: int, stop: int) -> Callable[[Tensor], Tensor]:
    """A loss that no two places share; the factors belong to the video frames."""

    def loss(frames: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(start)
        factors = torch.randn(1, 3, stop - start, 16, 16, generator=generator).to(frames)
        return (factors * (frames + 0.5 * frames**2)).mean()

    return loss


def window(start: int, stop: int, weight: float = 1.0, name: str = "a") -> Window:
    return Window(name=name, start=start, stop=stop, loss=loss_of(start, stop), weight=weight)


def host_gradient(vae: SmallVAE, x0: Tensor, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Total and gradient through the host's decode with one graph for everything."""
    leaf = x0.to(vae.model.conv2.weight).requires_grad_()
    frames = vae.model.decode(leaf, vae.scale)
    total = torch.stack([w.weight * w.loss(frames[:, :, w.start : w.stop]) for w in windows]).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.detach(), gradient


def assert_equal(got: Tensor, wanted: Tensor) -> None:
    assert wanted.abs().max() > 0
    assert (got - wanted).abs().max() <= RELATIVE * wanted.abs().max()


def test_frames_are_the_hosts_own(vae: SmallVAE) -> None:
    x0 = latents(5, batch=2)
    decoder = FrameDecoder(vae)
    state, inputs = decoder.start(), decoder.inputs(x0)
    with torch.no_grad():
        steps = [decoder.step(inputs[:, :, i : i + 1], i, state) for i in range(5)]
        wanted = vae.model.decode(x0, vae.scale)
    assert [step.shape[2] for step in steps] == [1, 4, 4, 4, 4]
    assert_equal(torch.cat(steps, dim=2), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 4])
def test_a_decoded_video_is_the_hosts_bit_for_bit(dtype: torch.dtype, frames: int) -> None:
    vae, x0 = random_vae().to(dtype), latents(frames, batch=2).to(dtype)
    video = decode_video(vae, x0)
    wanted = vae.single_decode(x0, "cpu")
    assert wanted.abs().max() == 1 and (wanted.abs() < 1).any()
    assert video.dtype == dtype and torch.equal(video, wanted)


def test_latent_frames_hold_the_video_frames() -> None:
    for latent in range(6):
        span = frames_of(latent)
        assert [latent_of(frame) for frame in range(span.start, span.stop)] == [latent] * (1 if latent == 0 else 4)
        assert frames_of(latent + 1).start == span.stop


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("segment_frames", [1, 2, 3])
def test_gradient_is_that_of_the_hosts_decode(vae: SmallVAE, segment_frames: int, batch: int) -> None:
    x0, windows = latents(5, batch), [window(0, 17)]
    total, gradient = host_gradient(vae, x0, windows)
    got = decode_with_losses(vae, x0, windows, segment_frames=segment_frames)
    assert got.gradient.dtype == torch.float32
    assert_equal(got.gradient, gradient)
    assert_equal(got.total, total)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory and streams need a CUDA device")
@pytest.mark.parametrize("segment_frames", [1, 2])
def test_offloaded_frames_come_back_as_they_were(segment_frames: int) -> None:
    vae, x0 = random_vae().cuda(), latents(5).cuda()
    windows = [Window(name="a", start=3, stop=17, loss=lambda frames: frames.square().mean())]
    here, away = (decode_with_losses(vae, x0, windows, memory, segment_frames) for memory in ("segments", "offload"))
    assert_equal(away.gradient, here.gradient)


def test_low_precision_rounds_as_the_hosts_decode() -> None:
    """Operations and their order are the host's: a gradient that rounding moves by a tenth is still the same."""
    low, x0, windows = random_vae().bfloat16(), latents(3), [window(0, 9)]
    gradient = host_gradient(low, x0, windows)[1].float()
    got = decode_with_losses(low, x0, windows).gradient
    assert (got - gradient).norm() <= 1e-3 * gradient.norm()


def test_the_reference_mode_gives_the_same(vae: SmallVAE) -> None:
    x0, windows = latents(4), [window(2, 11), window(5, 7, weight=3.0)]
    ours, reference = (decode_with_losses(vae, x0, windows, memory=memory) for memory in ("segments", "frame"))
    assert_equal(ours.gradient, reference.gradient)
    assert_equal(ours.total, reference.total)
    assert_equal(reference.gradient, host_gradient(vae, x0, windows)[1])


@pytest.mark.parametrize(
    "spans", [[(0, 1)], [(3, 6)], [(16, 17)], [(2, 9), (5, 7)], [(1, 2), (12, 15)], [(0, 17), (4, 8), (4, 8)]]
)
def test_windows_that_overlap_or_leave_frames_out(exact_vae: SmallVAE, spans: list[tuple[int, int]]) -> None:
    x0 = latents(5)
    windows = [window(*span, weight=0.5 + number, name=f"w{number}") for number, span in enumerate(spans)]
    total, gradient = host_gradient(exact_vae, x0, windows)
    got = decode_with_losses(exact_vae, x0, windows, segment_frames=2)
    assert_equal(got.gradient, gradient)
    assert_equal(got.total, total)
    assert set(got.values) == {w.name for w in windows}
    assert_equal(sum(w.weight * got.values[w.name] for w in windows), total)
    last = latent_of(max(stop for _, stop in spans) - 1)
    assert not got.gradient[:, :, last + 1 :].any()


def test_a_mean_can_be_cut_into_windows(vae: SmallVAE) -> None:
    x0 = latents(4)
    whole = Window(name="a", start=0, stop=13, loss=lambda frames: frames.square().mean())
    parts = [
        Window(
            name="a",
            start=i,
            stop=min(i + 5, 13),
            loss=lambda frames: frames.square().mean(dim=(0, 1, 3, 4)).sum() / 13,
        )
        for i in range(0, 13, 5)
    ]
    one, many = (decode_with_losses(vae, x0, windows) for windows in ([whole], parts))
    assert_equal(many.values["a"], one.values["a"])
    assert_equal(many.gradient, one.gradient)


def test_late_windows_begin_late_in_the_decoder(exact_vae: SmallVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latent frames far before the window stop on the way through the decoder, and nothing changes."""
    x0, windows = latents(13), [window(44, 47)]  # latent frames 11 and 12
    sizes: list[tuple[int, ...]] = []
    step = FrameDecoder.step

    def recording(*args: Any) -> Tensor:
        out = step(*args)
        sizes.append(tuple(out.shape[1:4]))
        return out

    monkeypatch.setattr(FrameDecoder, "step", recording)
    got = decode_with_losses(exact_vae, x0, windows)
    assert [latent for latent, (channels, _, _) in enumerate(sizes[:13]) if channels == 3] == [10, 11, 12]
    # The 7 convolutions of the full size look 14 frames back: it begins at 11 - 4.
    assert [latent for latent, (_, _, height) in enumerate(sizes[:13]) if height == 16] == list(range(7, 13))
    _, gradient = host_gradient(exact_vae, x0, windows)
    assert_equal(got.gradient, gradient)
    assert got.gradient[:, :, 0].any()


def test_only_one_segment_has_a_graph(vae: SmallVAE) -> None:
    """The tensors that graphs hold at a time do not grow with the length of the video."""
    alive, most = 0, 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal alive, most
            self.tensor = tensor
            alive += tensor.numel()
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.tensor.numel()

    def most_for(frames: int, segment_frames: int) -> int:
        nonlocal most
        most = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            decode_with_losses(
                vae,
                latents(frames),
                [window(0, 5), window(4 * frames - 5, 4 * frames - 3)],
                segment_frames=segment_frames,
            )
        assert alive == 0
        return most

    three = most_for(3, 1)
    assert most_for(7, 1) <= 1.02 * three  # the inputs [16, T, h, w] grow
    assert most_for(7, 2) > 1.5 * three


def test_surrogate_has_value_and_gradient(vae: SmallVAE) -> None:
    x_t, prediction = latents(3), latents(3).flip(2).requires_grad_()
    known = torch.zeros(1, 16, 1, 2, 2)
    windows = [window(0, 9)]

    x0 = predicted_latents(x_t, prediction, 0.7, known)
    losses = decode_with_losses(vae, x0, windows)
    loss = surrogate_loss(x0, losses)
    assert loss == losses.total
    assert loss.shape == ()
    (gradient,) = torch.autograd.grad(2 * loss, prediction)

    frames = vae.model.decode(predicted_latents(x_t, prediction, 0.7, known), vae.scale)
    (wanted,) = torch.autograd.grad(2 * windows[0].loss(frames), prediction)
    assert_equal(gradient, wanted)
    assert not gradient[:, :, 0].any()


def test_predicted_latents_undo_the_noise_and_stay_in_range() -> None:
    clean, noise, sigma = latents(3), latents(3).flip(3), 0.25
    noisy = (1 - sigma) * clean + sigma * noise
    torch.testing.assert_close(predicted_latents(noisy, noise - clean, sigma), clean)
    assert predicted_latents(noisy, torch.full_like(clean, 1e4), sigma).min() == -10
    known = torch.full((1, 16, 2, 2, 2), 7.0)
    x0 = predicted_latents(noisy.bfloat16(), noise - clean, sigma, known)
    assert x0.dtype == torch.float32
    assert (x0[:, :, :2] == 7).all()


def test_autocast_does_not_reach_the_decoder(vae: SmallVAE) -> None:
    x0, windows = latents(3), [window(0, 9)]
    plain = decode_with_losses(vae, x0, windows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = decode_with_losses(vae, x0, windows)
    assert torch.equal(plain.gradient, inside.gradient)


def test_memory_is_chosen_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_memory("auto", torch.device("cpu")) == "segments"
        assert choose_memory("auto", torch.device("cuda")) == "offload"
        assert choose_memory("frame", torch.device("cpu")) == "frame"
    assert "--aux_memory auto is segments on cpu" in caplog.text
    with pytest.raises(ValueError, match="choose one of auto, offload, segments, frame"):
        choose_memory("few", torch.device("cpu"))
    with pytest.raises(ValueError, match="choose segments"):
        choose_memory("offload", torch.device("cpu"))


@pytest.mark.parametrize(
    ("windows", "options", "message"),
    [
        ([], {}, "no windows"),
        ([window(3, 3)], {}, "frames 3 to 3 of a video of 9"),
        ([window(3, 10)], {}, "frames 3 to 10 of a video of 9"),
        ([window(0, 9)], {"segment_frames": 0}, "at least one"),
    ],
)
def test_what_cannot_be_done_is_refused(
    vae: SmallVAE, windows: list[Window], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decode_with_losses(vae, latents(3), windows, **options)


def test_a_vae_that_trains_is_refused() -> None:
    with pytest.raises(ValueError, match="requires_grad_"):
        decode_with_losses(SmallVAE(dim=4).requires_grad_(True), latents(3), [window(0, 9)])
