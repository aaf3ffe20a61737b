"""The networks of the losses on decoded frames, small, with fixed weights."""

from typing import Any

import torch
from goldens_aux.make_goldens import SIZES, fill

from diffsynth_omniavatar.losses import frozen
from diffsynth_omniavatar.losses.syncnet import StableSyncNet
from diffsynth_omniavatar.losses.trepa import VideoMAE


def small_syncnet(dtype: torch.dtype = torch.float32, **options: Any) -> StableSyncNet:
    sizes = {name: SIZES["sync"][name] for name in ("audio_channels", "visual_channels")}
    network = StableSyncNet(**sizes, **options)
    fill(network)
    frozen.freeze(network, "cpu", dtype)
    return network


def small_videomae(dtype: torch.dtype = torch.float32, **options: Any) -> VideoMAE:
    sizes = {name: SIZES["trepa"][name] for name in ("width", "depth", "heads", "inner", "size")}
    network = VideoMAE(**sizes | {"size": 56} | options)
    fill(network)
    frozen.freeze(network, "cpu", dtype)
    return network
