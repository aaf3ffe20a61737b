"""Train the nano family's video autoencoder on the drawn speaker:

    python -m diffsynth_omniavatar.nano.train_vae runs/vae --minutes 7 --device cuda

Single frames come first, then clips of 5, 9 and 17 frames through the host's own causal path, four frames at a time.
The network starts out treating each frame alone: else it learns to draw later frames from the first one, and drifts.
The loss is smooth L1, heavier at mouth and eyes, with a little KL. How far the schedule is depends on the time that has
passed, so that a run ends when it should on any machine; an interrupted one goes on when it is started again. On CUDA a
step of each length is captured and replayed, in bfloat16: it has more small kernels than a processor can start in time.

Written to OUT: vae.safetensors (the mean of the last steps' weights, float16), vae.json (figures on clips that training
has not seen), vae.png (frames above their reconstructions) and state.pt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import host
from ..media.images import to_video
from ..model.files import SMALL_FAMILY as FILES
from ..model.small_family import NANO, SmallVAE
from ..system.atomic import write_atomically
from .command_line import trainer_parser, write_figures
from .draw import draw_frames
from .family import half
from .speaker.canvas import SIZE
from .speaker.drawing import EYES, FACE, MOUTH, OPENING
from .vae_result import contact_sheet, face_figures, figures, fold_statistics, latent_statistics, no_scale, reconstruct

CLIP_FRAMES = 33
STAGES = ((0.10, 1), (0.60, 5), (0.80, 9), (1.00, 17))
"""Part of the run up to which a step sees clips of so many frames."""
MOUTH_WEIGHT, LIVELY_MOUTH_WEIGHT, EYES_WEIGHT = 16.0, 8.0, 4.0
"""Of the errors at mouth and eyes; those at the eyes of plain clips weigh no more than elsewhere."""
SMALL_ERROR = 0.2
"""Errors below this, of a range of 2, count by their square: what decides PSNR and the mouth's edges."""
KL_WEIGHT = 1e-5
WARMUP_STEPS = 100
MEAN_DECAY = 0.999
SAVE_SECONDS = 60.0
CAPTURE_WARMUP = 3
"""Steps before one is captured, on the same video."""


@dataclass(frozen=True, kw_only=True)
class VAETraining:
    """How a run goes."""

    minutes: float = 7.0
    """Of training, without drawing the clips and evaluating."""
    learning_rate: float = 4e-4
    frames_per_step: int = 96
    """Frames of all clips of a step together."""
    max_steps: int | None = None
    """Stop here at the latest; the schedule then follows the steps instead of the time."""
    seed: int = 0
    lively: bool = False
    """The clips are lively, and errors at the eyes count."""
    start_from: Path | None = None
    """A vae.safetensors to go on from, with a new schedule, instead of fresh weights."""


class Autoencoder(torch.nn.Module):
    """The VAE with its latents drawn from their distribution, as it trains.

    Args:
        network: the host's, whose encoder and decoder train.
    """

    def __init__(self, network: host.VideoVAE_) -> None:
        super().__init__()
        self.network = network.requires_grad_(True).train()
        self.moments: list[Tensor] = []
        # The host's `encode` returns the mean alone.
        network.conv1.register_forward_hook(lambda _, __, output: self.moments.append(output))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction [B, 3, F, H, W] of a video of that shape, and the latents' mean KL divergence from normal."""
        self.moments.clear()
        scale = no_scale(video)
        mean = self.network.encode(video, scale)
        log_variance = self.moments.pop()[:, mean.shape[1] :].clamp(-20, 10)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return self.network.decode(latents, scale), kl


def fresh_vae(seed: int) -> SmallVAE:
    """A VAE to train from: PyTorch's initial weights, latents that begin almost without noise."""
    torch.manual_seed(seed)
    vae = SmallVAE(**NANO.vae)
    with torch.no_grad():
        vae.model.conv1.bias[16:] = -4.0
        treat_frames_alone(vae.model)
    return vae


@torch.no_grad()
def treat_frames_alone(network: host.VideoVAE_) -> None:
    """Let every convolution start with its own frame alone, and those between frame rates with means and copies."""
    for name, layer in network.named_modules():
        if not isinstance(layer, torch.nn.Conv3d) or layer.kernel_size[0] == 1:
            continue
        if not name.endswith("time_conv"):
            layer.weight[:, :, -1] *= layer.kernel_size[0] ** 0.5  # the variance of all taps
            layer.weight[:, :, :-1] = 0
            continue
        same = torch.eye(layer.in_channels).view(layer.in_channels, layer.in_channels, 1, 1)
        for parameter in layer.parameters():
            parameter.zero_()
        if layer.stride[0] == 2:  # two frames become one
            layer.weight[:, :, -1] = layer.weight[:, :, -2] = same / 2
        else:  # one frame becomes two: their channels stand one after the other
            layer.weight[:, :, -1] = same.repeat(2, 1, 1, 1)


class RunningMean:
    """Mean of the weights over the last steps, exponentially weighted, in float32."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.weights = network.state_dict()
        self.tensors = {name: tensor.clone() for name, tensor in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step`; the first steps weigh less, as they are far from what follows."""
        decay = min(MEAN_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self.weights.values()), 1 - decay)


def clip_frames(progress: float) -> int:
    """Frames of a clip at this part (0 to 1) of the run."""
    return next(frames for end, frames in STAGES if progress <= end)


def learning_rate_factor(step: int, progress: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + float(np.cos(np.pi * progress)))


def sample_clips(frames: Tensor, length: int, frames_per_step: int, generator: torch.Generator) -> Tensor:
    """Random pieces [B, 3, length, H, W] in [-1, 1] of clips uint8 [clip, F, H, W, 3], half of them mirrored."""
    batch = max(1, frames_per_step // length)
    clip = torch.randint(len(frames), (batch,), generator=generator)
    start = torch.randint(frames.shape[1] - length + 1, (batch,), generator=generator)
    rows = start[:, None] + torch.arange(length)
    video = to_video(frames[clip[:, None].to(frames.device), rows.to(frames.device)])
    mirrored = (torch.rand(batch, generator=generator) < 0.5).to(frames.device)
    return torch.where(mirrored.view(-1, 1, 1, 1, 1), video.flip(-1), video).contiguous()


def pixel_weights(size: int, device: torch.device, lively: bool) -> Tensor:
    """Weights [size, size] of the pixels' errors, with mean 1: heavier in boxes around mouth and, if lively, eyes."""
    middle, mouth, eyes = FACE[0], FACE[1] + MOUTH, FACE[1] + EYES
    boxes = [(LIVELY_MOUTH_WEIGHT if lively else MOUTH_WEIGHT, 30, mouth - OPENING / 2, mouth + OPENING)]
    boxes += [(EYES_WEIGHT, 36, eyes - 20, eyes + 12)] if lively else []
    weights = torch.ones(size, size)
    for weight, reach, *rows in boxes:
        left, right, top, bottom = (round(edge * size / SIZE) for edge in (middle - reach, middle + reach, *rows))
        weights[top:bottom, left:right] = weight
    return (weights / weights.mean()).to(device)


class VAETrainer:
    """The state of a run: network, mean of its weights, optimizer, time and steps."""

    def __init__(self, frames: Tensor, out: Path, settings: VAETraining) -> None:
        self.frames, self.out, self.settings = frames, out, settings
        self.vae = fresh_vae(settings.seed).to(frames.device)
        if settings.start_from is not None:
            self.vae.load_state_dict({name: value.float() for name, value in load_file(settings.start_from).items()})
        self.network = self.vae.model
        self.model = Autoencoder(self.network)
        self.mean = RunningMean(self.network)
        self.on_cuda = frames.device.type == "cuda"
        self.learning_rate = torch.tensor(settings.learning_rate, device=frames.device)  # a captured step reads it
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            self.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            fused=self.on_cuda,
            capturable=self.on_cuda,
        )
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.weights = pixel_weights(frames.shape[2], frames.device, settings.lively)
        self.step, self.seconds = 0, 0.0

    @property
    def progress(self) -> float:
        """Part of the run that is done."""
        if self.settings.max_steps is not None:
            return self.step / self.settings.max_steps
        return min(1.0, self.seconds / (60 * self.settings.minutes))

    def resume(self) -> None:
        """Go on from `state.pt` if it is there."""
        path = self.out / "state.pt"
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.frames.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.mean.tensors = state["mean"]
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"goes on after step {self.step}, {self.seconds:.0f} s")

    def save(self) -> None:
        """Write `state.pt`."""
        state = {
            "network": self.network.state_dict(),
            "mean": self.mean.tensors,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
        }
        write_atomically(self.out / "state.pt", lambda path: torch.save(state, path))

    def run(self) -> list[float]:
        """Train to the end; the losses of all steps."""
        losses: list[Tensor] = []
        begun, before, saved = time.monotonic(), self.seconds, self.seconds
        while self.progress < 1:
            losses.append(self._train_step())
            if self.step % 20 == 0:
                loss = float(torch.stack(losses[-20:]).mean())  # waits for the device, so that the time is right
                self.seconds = before + time.monotonic() - begun
                if self.step % 100 == 0:
                    length = clip_frames(self.progress)
                    print(f"step {self.step} {self.seconds:.0f} s clips of {length} loss {loss:.4f}", flush=True)
            if self.seconds - saved > SAVE_SECONDS:
                self.save()
                saved = self.seconds
        self.save()
        return [float(loss) for loss in losses]

    def _train_step(self) -> Tensor:
        settings, progress = self.settings, self.progress
        self.learning_rate.fill_(settings.learning_rate * learning_rate_factor(self.step, progress))
        length = clip_frames(progress)
        video = sample_clips(self.frames, length, settings.frames_per_step, self.generator)
        if not self.on_cuda:
            error = self._update(video)
        elif length in self.captured:
            graph, static_video, static_error = self.captured[length]
            static_video.copy_(video)
            graph.replay()
            error = static_error.clone()
        else:
            error = self._update_and_capture(video, length)
        self.step += 1
        self.mean.update(self.step)
        return error

    def _update(self, video: Tensor) -> Tensor:
        """A step on a video; the error before it."""
        self.optimizer.zero_grad()
        # Weights change between uses, so their bfloat16 copies must not be kept.
        with torch.autocast(video.device.type, torch.bfloat16, enabled=self.on_cuda, cache_enabled=False):
            reconstruction, kl = self.model(video)
            errors = F.smooth_l1_loss(reconstruction.float(), video, beta=SMALL_ERROR, reduction="none")
            error = (errors * self.weights).mean()
        (error + KL_WEIGHT * kl).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        return error.detach()

    def _update_and_capture(self, video: Tensor, length: int) -> Tensor:
        """Steps on a video until the libraries have settled, then record one for all videos of this shape."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(CAPTURE_WARMUP):
                error = self._update(video)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            static_error = self._update(video)
        self.captured = {length: (graph, video, static_error)}  # the stages never go back: memory of the last is freed
        return error


def finish(trainer: VAETrainer, clips: np.ndarray) -> dict[str, float]:
    """Write the VAE and, measured on the written file, its figures on clips that training has not seen."""
    out, frames = trainer.out, trainer.frames
    vae = SmallVAE(**NANO.vae).to(frames.device)
    vae.model.load_state_dict(trainer.mean.tensors)
    fold_statistics(vae, *latent_statistics(vae.model, frames[:256]))
    file = out / FILES["vae"]
    write_atomically(file, lambda path: save_file(half(vae.state_dict()), path))
    vae.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    reconstructed = reconstruct(vae, clips)
    seen = face_figures(clips, reconstructed) if trainer.settings.lively else {}
    result = {**figures(vae, clips, reconstructed), **seen, "steps": float(trainer.step), "seconds": trainer.seconds}
    contact_sheet(clips, reconstructed, out / "vae.png")
    write_figures(out / "vae.json", result)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    default = VAETraining()
    parser = trainer_parser(
        "train_vae",
        __doc__,
        clips=3000,
        clips_help="drawn, of 33 frames (1.6 MB each on the device)",
        evaluation_clips=16,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=default.minutes, help="of training")
    add("--max_steps", type=int, help="train so many steps instead")
    add("--learning_rate", type=float, default=default.learning_rate)
    add("--frames_per_step", type=int, default=default.frames_per_step)
    add("--lively", action="store_true", help="with moves that nothing decides, and textures")
    add("--start_from", type=Path, help="a vae.safetensors to go on from, with a new schedule")
    given = vars(parser.parse_args(arguments))
    out, clips, evaluation_clips, device = (given.pop(name) for name in ("out", "clips", "evaluation_clips", "device"))
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    frames = torch.from_numpy(draw_frames(range(clips), CLIP_FRAMES, "train", given["lively"])).to(device)
    held_out = draw_frames(range(evaluation_clips), CLIP_FRAMES, "evaluation", given["lively"])
    print(f"{clips} clips drawn in {time.monotonic() - begun:.0f} s", flush=True)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    trainer = VAETrainer(frames, out, VAETraining(**given))
    trainer.resume()
    trainer.run()
    finish(trainer, held_out)


if __name__ == "__main__":
    main()
