"""Layers and attention in 8 bits: they compute what their numbers say, and those are near the model's."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_models import Goldens, relative_deviation
from PIL import Image
from torch import nn

from diffsynth_omniavatar import load_pipeline, nano
from diffsynth_omniavatar.model.blocks import quantized
from diffsynth_omniavatar.model.blocks.attention_fp8 import (
    Fp8Attention,
    attend,
    attention_inputs,
    check_attention_fp8,
)
from diffsynth_omniavatar.model.blocks.forward import GELU_DIP, gelu, gelu_limit
from diffsynth_omniavatar.model.blocks.quantized import (
    METHODS,
    QuantizedLinear,
    QuantizedTokens,
    input_gradient,
    linear,
    quantize_rows,
    quantize_weight,
)
from diffsynth_omniavatar.model.blocks.runner import BlockRunner
from diffsynth_omniavatar.model.blocks.sequence_parallel import SequenceParallel
from diffsynth_omniavatar.model.checkpoint import CheckpointError, read_shapes, save_safetensors
from diffsynth_omniavatar.model.config import CheckpointConfig, LoRAConfig
from diffsynth_omniavatar.model.convert import convert
from diffsynth_omniavatar.model.host_entries import add_full_entry
from diffsynth_omniavatar.model.quantize import LAYERS, check_quantize, chosen_layers, layer_names, quantize_blocks
from diffsynth_omniavatar.model.quantized_files import load_quantized
from diffsynth_omniavatar.training.module import add_lora, select_trainable

ROUNDED_ONCE = 4e-3
"""Of products whose result is bfloat16."""
FORMATS = {torch.float8_e4m3fn: 2**-4, torch.int8: 0.5}
"""Largest error of a number: a part of itself, or of a step."""


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def golden(goldens):
    return Goldens(goldens)


def widened(layer):
    """A plain layer with the numbers that one in 8 bits stands for."""
    plain = nn.Linear(layer.in_features, layer.out_features)
    plain.weight.data, plain.bias.data = layer.quantized.widened(torch.float32), layer.bias.data
    return plain


def with_plain_layers(dit):
    """The model's layers in 8 bits exchanged for plain ones of the same numbers."""
    for name, layer in list(dit.named_modules()):
        if isinstance(layer, QuantizedLinear):
            dit.set_submodule(name, widened(layer).requires_grad_(False))
    return dit


def small(golden, method=None, keep=(), lora=False):
    dit = golden.dit().requires_grad_(False)
    if lora:
        add_lora(dit, LoRAConfig(rank=4, alpha=8.0))
        select_trainable(dit, full=False)
        for index, (name, value) in enumerate(dit.named_parameters()):
            if "lora_" in name:
                value.data = 0.1 * random(*value.shape, seed=index)
    if method is not None:
        quantize_blocks(dit, method, keep)
    return dit


def predict(golden, dit, grad=False):
    config = dit.config
    x = random(1, 16, 3, 4, 4, seed=1)
    y = random(1, config.in_dim - 16, 3, 4, 4, seed=2)
    text, audio = random(1, 7, config.text_dim, seed=3), random(1, 9, config.audio_dim, seed=4)
    with torch.set_grad_enabled(grad):
        result = dit(x, torch.tensor([500.0]), text, y, audio)
        if grad:
            result.square().mean().backward()
    return result.detach()


@pytest.mark.parametrize("dtype", FORMATS)
def test_no_number_is_further_off_than_its_format_allows(dtype):
    x = random(40, 64) * 10.0 ** torch.arange(-20, 20).unsqueeze(1)
    x[3] = 0
    values, scale = quantize_rows(x, dtype)
    error = (values.float() * scale - x).abs()
    if dtype.is_floating_point:
        assert (error <= x.abs() * FORMATS[dtype] + scale * 2**-10).all()
    else:
        assert (error <= scale * FORMATS[dtype] * 1.001).all()
    assert torch.equal((values.float() * scale)[3], x[3])
    whole = values.float()[[row for row in range(40) if row != 3 and x[row].abs().amax() > 1e-9]]
    assert (whole.abs().amax(-1) == quantized.LARGEST[dtype]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_product_is_that_of_the_numbers_which_are_kept(method):
    x, weight, bias = random(2, 24, 64), quantize_weight(random(32, 64, seed=1), method), random(32, seed=2)
    found = linear(x, weight, bias)
    if method != "fp8_weights":
        values, scale = quantize_rows(x, weight.values.dtype)
        x = values.float() * scale
    wanted = F.linear(x, weight.widened(torch.float32), bias)
    assert relative_deviation(found, wanted) < (ROUNDED_ONCE if method == "fp8" else 1e-6)
    assert relative_deviation(F.linear(random(2, 24, 64), random(32, 64, seed=1), bias), found) < 0.06


@pytest.mark.parametrize("method", METHODS)
def test_the_input_gradient_is_that_of_the_weight_which_is_kept(method):
    grad, weight = random(2, 24, 32), quantize_weight(random(32, 64, seed=1) * random(32, 1, seed=2).exp(), method)
    wanted = grad @ weight.widened(torch.float32)
    assert relative_deviation(input_gradient(grad, weight), wanted) < (0.05 if method == "fp8" else 1e-6)
    if method == "fp8":
        rows = grad * weight.scale.T
        values, scale = quantize_rows(rows, torch.float8_e4m3fn)
        exact = (values.float() * scale) @ weight.values.float()
        assert relative_deviation(input_gradient(grad, weight), exact) < ROUNDED_ONCE


def test_a_limit_that_holds_changes_the_step_alone():
    x, weight = random(16, 64), quantize_weight(random(32, 64, seed=1), "fp8")
    tight, loose = (linear(x, weight, None, factor * x.abs().amax(-1, keepdim=True)) for factor in (1, 13))
    assert torch.equal(tight, linear(x, weight, None))
    assert 0 < relative_deviation(loose, tight) < 0.05


def test_the_limit_of_an_activation_is_its_largest_number():
    u = torch.cat([4 * random(50, 64), -4 * random(50, 64).abs(), 0.1 * random(50, 64)])
    largest = gelu(u).abs().amax(-1, keepdim=True)
    assert (largest <= gelu_limit(u) * (1 + 1e-6)).all()
    assert (gelu_limit(u) <= largest.clamp(min=GELU_DIP) * (1 + 1e-6)).all()


def test_layers_keep_their_formats_when_the_model_is_moved():
    layer = QuantizedLinear(quantize_weight(random(32, 64), "fp8"), random(32, seed=1))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.to(torch.bfloat16).half()
    after = layer.state_dict()
    assert all(torch.equal(after[name].float(), value.float()) for name, value in before.items() if name != "bias")
    assert {value.dtype for value in after.values()} == {torch.float8_e4m3fn, torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_the_blocks_of_this_package_compute_what_the_layers_do(golden, method):
    dit = small(golden, method)
    by_layers = predict(golden, dit)
    dit.runner = BlockRunner()
    assert relative_deviation(predict(golden, dit), by_layers) < 0.02
    assert 1e-4 < relative_deviation(by_layers, predict(golden, small(golden))) < 0.1


def test_of_the_kept_layers_no_bit_changes(golden):
    plain = predict(golden, small(golden))
    assert torch.equal(predict(golden, small(golden, "fp8", ("self_attn", "cross_attn", "ffn"))), plain)
    dit = small(golden, "fp8", layer_names("first, ffn.2"))
    kinds = [{name: isinstance(block.get_submodule(name), QuantizedLinear) for name in LAYERS} for block in dit.blocks]
    assert not any(kinds[0].values())
    assert all(kind == {name: name != "ffn.2" for name in LAYERS} for kind in kinds[1:])


def test_first_and_last_are_blocks():
    names = chosen_layers(4, ("first", "last", "cross_attn", "ffn.0"))
    assert {name.split(".")[1] for name in names} == {"1", "2"} and len(names) == 10
    assert not any("cross" in name or name.endswith("ffn.0") for name in names)
    assert len(chosen_layers(4, ())) == 4 * len(LAYERS)


@pytest.mark.parametrize("method", METHODS)
def test_adapters_train_on_layers_in_8_bits(golden, method):
    """Gradients are those of plain layers with the same numbers; where products are in 8 bits, too, nearly."""
    dit = small(golden, method, lora=True)
    dit.runner = BlockRunner(activation_memory=0.0)
    predict(golden, dit, grad=True)
    found = {name: value.grad for name, value in dit.named_parameters() if value.grad is not None}
    plain = with_plain_layers(small(golden, method, lora=True))
    plain.runner = BlockRunner(activation_memory=0.0)
    predict(golden, plain, grad=True)
    wanted = {name: value.grad for name, value in plain.named_parameters() if value.grad is not None}
    assert found.keys() == wanted.keys() and any("lora_A" in name for name in found)
    joined = [torch.cat([grads[name].flatten() for name in wanted]) for grads in (found, wanted)]
    assert relative_deviation(*joined) < (1e-5 if method == "fp8_weights" else 0.1)


@pytest.mark.parametrize("method", METHODS)
def test_layers_in_8_bits_that_wait_in_main_memory_change_no_bit(golden, method):
    dit = small(golden, method)
    dit.runner = BlockRunner()
    wanted = predict(golden, dit)
    dit.runner.stream_weights(dit.blocks, torch.device("cpu"), cyclic=True)
    dit.to("cpu")
    assert all(layer.values.numel() == 0 for layer in dit.blocks.modules() if isinstance(layer, QuantizedLinear))
    for _ in range(3):
        assert torch.equal(predict(golden, dit), wanted)
    streamed = dit.runner.streamed
    for index in (0, 1, len(dit.blocks) - 1, 0):  # the next one is on its way, behind the last the first
        streamed.fetch(index)
        assert set(streamed._there) == {index, (index + 1) % len(dit.blocks)}


@pytest.fixture(scope="module")
def files(golden, tmp_path_factory):
    """A full checkpoint, and the same in 8 bits by method."""
    folder = tmp_path_factory.mktemp("checkpoints")
    dit = golden.dit()
    config = CheckpointConfig(in_dim=dit.config.in_dim, model=dit.config)
    save_safetensors(folder / "full.safetensors", dit.state_dict(), config)
    for method in ("fp8", "int8"):
        out = folder / f"{method}.safetensors"
        convert(folder / "full.safetensors", out, "merged", quantize=method, keep_bf16="first")
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_file_in_8_bits_holds_what_quantising_gives(golden, files, method):
    file = files / ("int8.safetensors" if method == "int8" else "fp8.safetensors")
    found = load_quantized(file, quantize=method, dtype=torch.float32, device="cpu")
    assert torch.equal(predict(golden, found), predict(golden, small(golden, method, ("first",))))
    shapes = read_shapes([file])
    scales = [shape for name, shape in shapes.items() if name.endswith("weight_scale")]
    assert len(scales) == len(LAYERS) * (found.config.num_layers - 1) and all(shape[1] == 1 for shape in scales)


def test_a_file_in_8_bits_is_refused_where_it_does_not_go(files):
    file = files / "int8.safetensors"
    with pytest.raises(CheckpointError, match=r"torch.int8 already, which quantize 'fp8' does not go with"):
        load_quantized(file, quantize="fp8", dtype=torch.float32, device="cpu")
    with pytest.raises(CheckpointError, match="is in 8 bits: load_pipeline takes it"):
        add_full_entry(file)
    for source, to, message in ((file, "merged", "is in 8 bits"), (files / "full.safetensors", "lora", "--to merged")):
        with pytest.raises(CheckpointError, match=message):
            convert(source, files / "out.safetensors", to, quantize="fp8")


def test_the_small_model_talks_from_a_file_in_8_bits(tmp_path):
    source, file = Path(nano.__file__).parent / "weights" / "omniavatar", tmp_path / "small.safetensors"
    convert(source, file, "merged", quantize="fp8")
    waveform, picture = random(16000), Image.new("RGB", (128, 128), "gray")
    call = {"prompt": "a", "input_image": picture, "input_audio": waveform, "num_frames": 5, "seed": 0}
    found, wanted = (
        load_pipeline("nano", **way)(**call, num_inference_steps=1, output_type="floatpoint")
        for way in ({"omniavatar": file}, {"quantize": "fp8"})
    )
    assert relative_deviation(found, wanted) < 0.02


def attention(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def in_float8(q, k, v, heads=2):
    return attend(attention_inputs(q, k, v, q.abs().amax(), k.abs().amax()), heads)


def test_attention_in_float8_is_near_that_in_float32():
    q, k, v = (random(2, 48, 32, seed=seed) for seed in range(3))
    assert relative_deviation(in_float8(q, k, v).widened(), attention(q, k, v, 2)) < 0.08


@pytest.mark.parametrize("shared", [10.0, 100.0])
def test_what_all_keys_or_values_share_costs_no_precision(shared):
    q, k, v, common = (random(2, 48, 32, seed=seed) for seed in range(4))
    wanted = attention(q, k, v, 2)
    offset = shared * common[:, :1]
    assert relative_deviation(in_float8(q, k + offset, v).widened(), wanted) < 0.1
    found = in_float8(q, k, v + offset)
    assert relative_deviation(found.widened() - offset, wanted) < 0.1


def trained_in_float8(q, k, v):
    inputs = attention_inputs(q, k, v, q.abs().amax(), k.abs().amax())
    return Fp8Attention(inputs, 2, QuantizedTokens.widened), inputs.widened()


@pytest.mark.parametrize(("sharp", "bound"), [(1, 0.2), (2, 0.3)])
def test_attention_in_float8_has_gradients_as_near_as_its_result(sharp, bound):
    grad, q, k, v, common = (random(2, 800, 32, seed=seed) for seed in range(5))
    q, k, v = (x.requires_grad_() for x in (sharp * q, sharp * k + 10 * common[:, :1], v + 10 * common[:, 1:2]))
    exact = attention(q, k, v, 2)
    with torch.no_grad():
        found, inputs = trained_in_float8(q, k, v)
        gradients = found.backward(grad, *inputs)
    for one, wanted in zip(gradients, torch.autograd.grad(exact, (q, k, v), grad), strict=True):
        assert 1e-4 < relative_deviation(one, wanted) < bound


def test_gradients_of_attention_in_float8_are_those_of_the_numbers_which_are_kept():
    grad, *tokens = (random(2, 48, 32, seed=seed) for seed in range(4))
    found, inputs = trained_in_float8(*tokens)
    q, k, v = (x.requires_grad_() for x in inputs)
    exact = attention(q, k, v, 2)
    assert relative_deviation(found.output.widened() - found.output.offset, exact) < 2**-4  # rounded once
    found.output = QuantizedTokens(exact.detach(), torch.ones(()), found.output.offset)
    gradients = found.backward(grad, *(x.detach() for x in inputs))
    for one, wanted in zip(gradients, torch.autograd.grad(exact, (q, k, v), grad), strict=True):
        assert relative_deviation(one, wanted) < 1e-5


@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_projection_takes_attention_in_float8_as_it_is(method):
    attended = in_float8(*(random(2, 48, 32, seed=seed) for seed in range(3)))
    weight, bias = random(64, 32, seed=5), random(64, seed=6)
    kept = weight if method is None else quantize_weight(weight, method)
    exact = F.linear(attended.widened(), weight if method is None else kept.widened(torch.float32), bias)
    assert relative_deviation(linear(attended, kept, bias), exact) < (0.02 if method == "int8" else ROUNDED_ONCE)


def test_a_denoiser_with_attention_in_float8_is_near_the_exact_one(golden):
    dit = small(golden)
    wanted = predict(golden, dit)
    dit.runner = BlockRunner(attention_fp8=True)
    assert 1e-6 < relative_deviation(predict(golden, dit), wanted) < 0.1


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_quantize("int4", (), "cpu"), "'int4': wanted one of fp8, int8, fp8_weights"),
        (lambda: check_quantize("fp8", ("head",), "cpu"), "keep_bf16 'head': wanted first, last"),
        (lambda: BlockRunner(attention_fp8=True, parallel=SequenceParallel(0, 2)), "does not go with --use_usp"),
        (lambda: check_attention_fp8("cpu", 24), "24 wide; wanted a multiple of 16"),
        (lambda: check_attention_fp8("cpu", 256), "256 wide"),
    ],
)
def test_what_cannot_be_done_is_named(check, message):
    with pytest.raises(ValueError, match=message):
        check()
