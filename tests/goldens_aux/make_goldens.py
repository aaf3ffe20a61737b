"""Runs the originals of the auxiliary networks on seeded weights and inputs, and writes what they give.

    python make_goldens.py LATENTSYNC FOLDER

LATENTSYNC is a checkout of https://github.com/bytedance/LatentSync at a229c3948406bc2cf6eaf4873e662e70c6a04746. What
it imports is needed (diffusers, einops, imageio, librosa, matplotlib, omegaconf, opencv, requests, scipy, torchvision,
tqdm), and lpips. The files here were made with torch 2.15, librosa 0.11 and scipy 1.17.
`recipe.py`, one folder up, makes weights and inputs from their names. All numbers are float32 on the CPU.
"""

import json
import os
import sys
import types
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from recipe import inp, weight

SEED = 0
SIZES = {
    "sync": {
        "audio_channels": [32, 32, 64, 64, 64, 96, 128],
        "visual_channels": [32, 64, 64, 64, 96, 96, 128, 128],
        "frames": [2, 3, 16, 96, 80],
        "mel": [2, 80, 52],
    },
    "mel": {"samples": 21234},
    "trepa": {"width": 48, "depth": 3, "heads": 4, "inner": 209, "size": 224, "frames": [2, 3, 16, 60, 72]},
    "lpips": {"frames": [1, 3, 2, 64, 48]},
}


def fill(network: torch.nn.Module) -> None:
    """Weights that are functions of their names."""
    network.load_state_dict({name: weight(name, value.shape, SEED) for name, value in network.state_dict().items()})
    network.eval().requires_grad_(False)


def sound(samples: int) -> torch.Tensor:
    """Noise that comes and goes, loud at both ends, with silence in between."""
    time = torch.linspace(0, 1, samples)
    return inp("mel", "waveform", [samples], SEED) * 0.2 * torch.cos(9 * time) ** 4 * ((time - 0.5).abs() > 0.1)


def pictures(golden: str, name: str) -> torch.Tensor:
    """Frames that leave [-1, 1] here and there."""
    return 0.6 * inp(golden, name, SIZES[golden]["frames"], SEED)


def syncnet_config(audio_channels: list[int], visual_channels: list[int]) -> dict:
    """That of configs/syncnet/syncnet_16_pixel_attn.yaml with other channels."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load("configs/syncnet/syncnet_16_pixel_attn.yaml"))["model"]
    config["audio_encoder"]["block_out_channels"] = audio_channels or config["audio_encoder"]["block_out_channels"]
    config["visual_encoder"]["block_out_channels"] = visual_channels or config["visual_encoder"]["block_out_channels"]
    return config


def sync() -> tuple[dict, dict]:
    """StableSyncNet and the loss, as in train_unet.py."""
    from latentsync.models.stable_syncnet import StableSyncNet
    from latentsync.utils.util import cosine_loss

    sizes = SIZES["sync"]
    network = StableSyncNet(syncnet_config(sizes["audio_channels"], sizes["visual_channels"]))
    fill(network)
    frames = pictures("sync", "frames").requires_grad_(True)
    batch, _, count = frames.shape[:3]
    resized = F.interpolate(frames.transpose(1, 2).flatten(0, 1), size=(256, 256), mode="bicubic")
    halves = resized.reshape(batch, count * 3, 256, 256)[:, :, 128:]
    vision, audio = network(halves, inp("sync", "mel", sizes["mel"], SEED)[:, None])
    losses = cosine_loss(vision, audio, torch.ones(batch, 1))
    gradient = torch.autograd.grad(losses.mean(), frames)[0]
    with torch.device("meta"):
        shapes = {name: list(value.shape) for name, value in StableSyncNet(syncnet_config([], [])).state_dict().items()}
    tensors = {
        "vision": vision.detach(),
        "audio": audio.detach(),
        "losses": losses.detach(),
        "gradient": gradient[:, :, ::5, ::6, ::6].contiguous(),
    }
    return tensors, shapes


def mel() -> dict:
    """The mel spectrogram of audio.py."""
    from latentsync.utils.audio import melspectrogram

    return {"mel": torch.from_numpy(melspectrogram(sound(SIZES["mel"]["samples"]).numpy())).float()}


def trepa() -> tuple[dict, dict]:
    """VideoMAE's features and TREPALoss, whose constructor wants CUDA and float16: it is passed by."""
    from latentsync.trepa.loss import TREPALoss
    from latentsync.trepa.third_party.VideoMAEv2 import videomaev2_finetune as original

    sizes = SIZES["trepa"]
    network = original.VisionTransformer(
        img_size=sizes["size"],
        patch_size=14,
        num_classes=174,
        embed_dim=sizes["width"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=48 / 11,
        qkv_bias=True,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
    )
    fill(network)
    loss = TREPALoss.__new__(TREPALoss)
    loss.model = network
    predicted, target = pictures("trepa", "predicted").requires_grad_(True), pictures("trepa", "target")
    value = loss(predicted, target)
    gradient = torch.autograd.grad(value, predicted)[0]
    clip = torch.sigmoid(inp("trepa", "clip", [1, 3, 16, sizes["size"], sizes["size"]], SEED))
    # Numbers cannot be taken from the meta device, and the table of positions is not in the state dict.
    with (
        torch.device("meta"),
        patch.object(original.torch, "linspace", partial(torch.linspace, device="cpu")),
        patch.object(original, "get_sinusoid_encoding_table"),
    ):
        giant = original.vit_giant_patch14_224(num_classes=174, all_frames=16, tubelet_size=2, use_mean_pooling=True)
    shapes = {name: list(value.shape) for name, value in giant.state_dict().items()}
    tensors = {
        "features": network.forward_features(clip),
        "loss": value.detach(),
        "gradient": gradient[:, :, ::5, ::6, ::6].contiguous(),
    }
    return tensors, shapes


def lpips() -> dict:
    """The lpips package on the lower halves, as train_unet.py calls it; VGG's weights are seeded, the rest its own."""
    from lpips import LPIPS

    network = LPIPS(net="vgg", pnet_rand=True, verbose=False)
    fill(network.net)
    predicted, target = (pictures("lpips", name).transpose(1, 2).flatten(0, 1) for name in ("predicted", "target"))
    half = predicted.shape[2] // 2
    return {"distances": network(predicted[:, :, half:], target[:, :, half:]).flatten().detach()}


def main(checkout: str, folder: str) -> None:
    """Write all files into `folder`."""
    target = Path(folder).resolve()
    os.chdir(checkout)  # audio.py reads configs/audio.yaml from where it is run
    sys.path.insert(0, ".")
    sys.modules["decord"] = types.SimpleNamespace(AudioReader=None, VideoReader=None, cpu=None)  # imported, not used
    (sync_tensors, sync_shapes), (trepa_tensors, trepa_shapes) = sync(), trepa()
    save_file(sync_tensors, target / "sync.safetensors")
    save_file(trepa_tensors, target / "trepa.safetensors")
    save_file(mel(), target / "mel.safetensors")
    save_file(lpips(), target / "lpips.safetensors")
    (target / "meta.json").write_text(json.dumps({"seed": SEED, **SIZES}, indent=1) + "\n")
    for name, shapes in (("stable_syncnet", sync_shapes), ("vit_g", trepa_shapes)):
        lines = [f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items()]
        (target / f"{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
