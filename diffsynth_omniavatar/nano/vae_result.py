"""What a trained small VAE shows, and the constants of the host's normalisation folded into its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import host
from ..media.images import to_bytes, to_video
from ..metrics.picture import psnr
from ..metrics.sync import correlation
from ..model.small_family import SmallVAE
from .measure import measure_mouth
from .measure_face import measure_face


def no_scale(like: Tensor) -> list[Tensor]:
    """Mean and inverse deviation for the host's `encode` and `decode` that leave the latents as they are."""
    return [like.new_zeros(16), like.new_ones(16)]


@torch.no_grad()
def latent_statistics(network: host.VideoVAE_, frames: Tensor, batch: int = 8) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [16] of the latents of clips uint8 [clip, F, H, W, 3]."""
    sums = torch.zeros(2, 16, dtype=torch.float64, device=frames.device)
    count = 0
    for part in frames.split(batch):
        video = to_video(part)
        latents = network.encode(video, no_scale(video)).double()
        sums += torch.stack([latents.sum((0, 2, 3, 4)), latents.square().sum((0, 2, 3, 4))])
        count += latents.numel() // 16
    mean = sums[0] / count
    return mean.float(), (sums[1] / count - mean.square()).sqrt().float()


@torch.no_grad()
def fold_statistics(vae: SmallVAE, mean: Tensor, deviation: Tensor) -> None:
    """Give the latents the mean and deviation that the host takes Wan's latents to have; the decoder takes it back.

    The host subtracts those means and divides by those deviations, so that what its `encode` returns then has mean 0
    and deviation 1, and the file needs no constants of its own.
    """
    network, wan_mean, wan_deviation = vae.model, vae.mean.to(mean), vae.std.to(mean)
    gain = wan_deviation / deviation
    network.conv1.weight[:16] *= gain.view(-1, 1, 1, 1, 1)
    network.conv1.bias[:16] = (network.conv1.bias[:16] - mean) * gain + wan_mean
    network.conv1.bias[16:] += 2 * gain.log()
    matrix = network.conv2.weight.flatten(1).clone()
    network.conv2.bias += matrix @ (mean - wan_mean / gain)
    network.conv2.weight.copy_((matrix / gain).view_as(network.conv2.weight))


@torch.no_grad()
def reconstruct(vae: SmallVAE, frames: np.ndarray) -> np.ndarray:
    """Clips uint8 [clip, F, H, W, 3] through the VAE as the pipeline runs it."""
    device = next(vae.parameters()).device
    latents = vae.encode(to_video(torch.from_numpy(frames)), device)
    return to_bytes(vae.decode(latents, device)).permute(0, 2, 3, 4, 1).cpu().numpy()


def figures(vae: SmallVAE, clips: np.ndarray, reconstructed: np.ndarray) -> dict[str, float]:
    """How well the VAE shows clips uint8 [clip, F, H, W, 3]: PSNR, and r of the measured mouth, the mean over clips."""
    measured = [(measure_mouth(clip), measure_mouth(copy)) for clip, copy in zip(clips, reconstructed, strict=True)]
    openness = [correlation(after[0], before[0]) for before, after in measured]
    width = [correlation(after[1], before[1]) for before, after in measured]
    single = clips[:, clips.shape[1] // 2 :][:, :1]
    return {
        "psnr": psnr(clips, reconstructed),
        "psnr_single_frames": psnr(single, reconstruct(vae, single)),
        "r_openness": float(np.mean(openness)),
        "r_openness_lowest": float(np.min(openness)),
        "r_width": float(np.mean(width)),
        "r_width_lowest": float(np.min(width)),
    }


def face_figures(clips: np.ndarray, reconstructed: np.ndarray) -> dict[str, float]:
    """How well lively clips uint8 [clip, F, H, W, 3] are shown: r of gaze, lids, brows and turns, the mean over clips,
    and how sharp the eyes are, of what they were.
    """
    pairs = [(measure_face(clip), measure_face(copy)) for clip, copy in zip(clips, reconstructed, strict=True)]
    result = {}
    for name in ("gaze", "lids", "left_brow", "turn"):
        tracks = [(getattr(before, name), getattr(after, name)) for before, after in pairs]
        values = [
            correlation(after[seen], before[seen]) for before, after in tracks if (seen := np.isfinite(before)).any()
        ]
        result[f"r_{name}"] = float(np.mean(values))
    sharpness = [np.nanmean(after.sharpness) / np.nanmean(before.sharpness) for before, after in pairs]
    return result | {"sharpness_of_eyes": float(np.mean(sharpness))}


def contact_sheet(clips: np.ndarray, reconstructed: np.ndarray, path: Path, rows: int = 6, columns: int = 8) -> None:
    """A picture of clips, each row above its reconstruction."""
    places = np.linspace(0, clips.shape[1] - 1, columns).round().astype(int)
    pairs = [
        np.concatenate(list(row[places]), axis=1) for pair in zip(clips, reconstructed, strict=True) for row in pair
    ]
    Image.fromarray(np.concatenate(pairs[: 2 * rows])).save(path)
