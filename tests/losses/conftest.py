"""What tests of several losses share."""

import pytest
import torch

from diffsynth_omniavatar import host


@pytest.fixture
def pipe():
    """A pipeline with nothing but a scheduler, whose model predicts zeros and keeps what it got."""
    pipe = host.WanVideoPipeline(device="cpu", torch_dtype=torch.float32)
    pipe.scheduler.set_timesteps(1000, training=True)
    pipe.in_iteration_models = ()
    pipe.model_fn = lambda latents, omni_record, **_: omni_record.keep(latents, torch.zeros_like(latents))
    return pipe
