"""3D convolutions by oneDNN give PyTorch's numbers and gradients."""

import copy

import pytest
import torch
from golden_models import relative_deviation
from torch import nn

from diffsynth_omniavatar.model.conv_on_cpu import use_onednn

MANY = {"padding": (0, 1, 1), "stride": (2, 1, 1), "dilation": (1, 1, 2)}


@pytest.mark.parametrize("options", [{}, {"bias": False}, MANY], ids=["plain", "no bias", "many"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients_are_those_of_torch(options, dtype):
    torch.manual_seed(0)
    plain = nn.Conv3d(5, 7, (3, 3, 1), **options).to(dtype)
    mine = copy.deepcopy(plain)
    use_onednn(mine)
    x = torch.randn(1, 5, 6, 9, 8, dtype=dtype)
    found, wanted = [], []
    for conv, kept in ((mine, found), (plain, wanted)):
        given = x.clone().requires_grad_()
        result = conv(given)
        kept += [result, *torch.autograd.grad(result.square().sum(), [given, *conv.parameters()])]
    for one, other in zip(found, wanted, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 0  # sums in another order; other formats are PyTorch's
        assert relative_deviation(one, other.float()) <= tolerance


def test_a_copy_computes_with_its_own_weights():
    conv = nn.Conv3d(2, 2, 3)
    use_onednn(conv)
    copied = copy.deepcopy(conv)
    copied.weight.data.zero_()
    assert not (copied(torch.ones(1, 2, 3, 3, 3)) - copied.bias.view(-1, 1, 1, 1)).any()
