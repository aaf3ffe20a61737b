"""The denoiser gives upstream's numbers."""

import pytest
import torch
from golden_models import Goldens, relative_deviation
from recipe import inp

from diffsynth_omniavatar.model.config import PRESETS, OmniAvatarConfig
from diffsynth_omniavatar.model.dit import AudioPack, OmniAvatarDiT, state_dict_shapes

OUTPUT_TOLERANCE = 1e-5  # of the goldens' README: threads, attention kernels and processors differ by up to 1.5e-6
GRADIENT_TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def golden(goldens):
    return Goldens(goldens)


@pytest.fixture(scope="module")
def dit(golden):
    return golden.dit()


def run(dit, tensors, prefix, timestep, audio):
    inputs = (tensors[f"{prefix}in.{name}"] for name in ("context", "y"))
    with torch.no_grad():
        return dit(tensors[f"{prefix}in.x"], torch.tensor([timestep]), *inputs, audio)


def case_audio(golden, case):
    size = "B" if case == "B" else "A"
    audio = golden.audio("dit_i2v", f"{case}/audio", golden.dims[f"{size}_t"])
    return audio * 0.01 if case == "C" else audio


@pytest.mark.parametrize("case", "ABCD")
def test_i2v_outputs_equal_upstream(golden, case):
    small = {
        name: tensor * 0.01
        for name, tensor in golden.weights().items()
        if name.endswith((".q.weight", ".q.bias", ".k.weight", ".k.bias"))
    }
    dit = golden.dit(**(small if case == "D" else {}))
    tensors = golden.tensors("dit_i2v")
    audio = case_audio(golden, case)
    for name, timestep, features in [
        ("t500", 500.0, audio),
        ("t37_5", 37.5, audio),
        ("t500.audio_zero", 500.0, torch.zeros_like(audio)),
    ]:
        out = run(dit, tensors, f"{case}.", timestep, features)
        assert relative_deviation(out, tensors[f"{case}.out.{name}"]) < OUTPUT_TOLERANCE, name


def test_audio_enters_before_the_blocks_upstream_says(golden, dit):
    assert list(dit.config.audio_layers) == golden.json("dit_i2v")["audio_layers"]
    assert len(dit.audio_cond_projs) == golden.json("dit_i2v")["audio_cond_projs"]
    tensors = golden.tensors("dit_i2v")
    seen = {}
    handles = [
        dit.blocks[2].register_forward_pre_hook(lambda _, inputs: seen.update({"blocks.2.input": inputs[0]})),
        dit.audio_proj.register_forward_hook(lambda _, __, out: seen.update({"audio_proj": out[:, :, None, None]})),
        dit.blocks[1].register_forward_hook(lambda _, __, out: seen.update({"blocks.1": out})),
    ]
    run(dit, tensors, "A.", 500.0, case_audio(golden, "A"))
    for handle in handles:
        handle.remove()
    for name, value in seen.items():
        assert relative_deviation(value, tensors[f"A.mid.{name}"]) < OUTPUT_TOLERANCE, name


def test_v2v_outputs_equal_upstream(golden):
    tensors = golden.tensors("dit_v2v")
    dit = golden.dit(in_dim=49)
    audio = golden.audio("dit_v2v", "A/audio", golden.dims["A_t"])
    for name, timestep in [("t500", 500.0), ("t37_5", 37.5)]:
        assert relative_deviation(run(dit, tensors, "", timestep, audio), tensors[f"out.{name}"]) < OUTPUT_TOLERANCE


def test_audio_pack_equals_upstream(golden):
    weights = golden.weights()
    pack = AudioPack(golden.meta["audio_dim"], golden.meta["audio_hidden_size"])
    prefix = "audio_proj."
    pack.load_state_dict({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)})
    for name, wanted in golden.tensors("audio_pack").items():
        frames = name.removeprefix("out.")
        audio = inp("audio_pack", frames, [1, int(frames[1:]), golden.meta["audio_dim"]], golden.seed)
        assert relative_deviation(pack(audio)[:, :, None, None], wanted) < OUTPUT_TOLERANCE, name


@pytest.mark.parametrize(
    "flags", [{}, {"use_gradient_checkpointing": True}, {"use_gradient_checkpointing_offload": True}]
)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_upstream(golden, flags, training):
    tensors, facts = golden.tensors("dit_grad"), golden.json("dit_grad")
    dit = golden.dit().train(training)
    x = tensors["in.x"].clone().requires_grad_()
    audio = golden.audio("dit_grad", "A/audio", golden.dims["A_t"]).requires_grad_()
    out = dit(x, torch.tensor([facts["timestep"]]), tensors["in.context"], tensors["in.y"], audio, **flags)
    loss = out.square().mean()
    loss.backward()
    assert relative_deviation(out, tensors["out"]) < OUTPUT_TOLERANCE
    assert loss.item() == pytest.approx(facts["loss"], rel=OUTPUT_TOLERANCE)
    gradients = {name: parameter.grad for name, parameter in dit.named_parameters()}
    for name in golden.meta["grad_full"]:
        assert relative_deviation(gradients[name], tensors[f"grad.{name}"]) < GRADIENT_TOLERANCE, name
    assert relative_deviation(x.grad, tensors["grad_in.x"]) < GRADIENT_TOLERANCE
    norms = {**{name: g.norm().item() for name, g in gradients.items()}, "x": x.grad.norm().item()}
    for name, wanted in {**facts["grad_l2"], "x": facts["input_grad_l2"]["x"]}.items():
        assert norms[name] == pytest.approx(wanted, rel=GRADIENT_TOLERANCE), name
    assert audio.grad.norm().item() == pytest.approx(facts["input_grad_l2"]["audio"], rel=GRADIENT_TOLERANCE)


def test_checkpointing_keeps_no_block_inside_and_changes_no_bit(golden):
    tensors = golden.tensors("dit_grad")
    audio = golden.audio("dit_grad", "A/audio", golden.dims["A_t"])
    gradients = []
    for flag in (False, True):
        dit = golden.dit()
        forwards = []
        dit.blocks[0].ffn.register_forward_hook(lambda *_, calls=forwards: calls.append(1))
        inputs = (tensors["in.x"], torch.tensor([500.0]), tensors["in.context"], tensors["in.y"], audio)
        dit(*inputs, use_gradient_checkpointing=flag).square().mean().backward()
        assert len(forwards) == (2 if flag else 1)
        gradients.append({name: parameter.grad for name, parameter in dit.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_each_sample_of_a_batch_gets_what_it_gets_alone(golden, dit):
    seed, dims = golden.seed, golden.dims
    shape = [dims["A_t"], dims["A_h"], dims["A_w"]]
    x = inp("batch", "x", [3, 16, *shape], seed)
    y = inp("batch", "y", [3, 17, *shape], seed)
    context = inp("batch", "context", [3, dims["text_tokens"], dims["text_dim"]], seed)
    audio = inp("batch", "audio", [3, 4 * dims["A_t"] - 3, golden.meta["audio_dim"]], seed)
    timestep = torch.tensor([900.0, 500.0, 37.5])
    with torch.no_grad():
        batch = dit(x, timestep, context, y, audio)
        for i in range(3):
            one = slice(i, i + 1)
            alone = dit(x[one], timestep[one], context[one], y[one], audio[one])
            assert relative_deviation(batch[one], alone) < OUTPUT_TOLERANCE
        shared = dit(x, timestep[:1], context, y, audio)
        assert relative_deviation(shared[:1], batch[:1]) < OUTPUT_TOLERANCE


def test_upgrading_a_plain_wan_model_gives_the_same_model(golden):
    from diffsynth_omniavatar.host import WanModel

    config = golden.config()
    plain = WanModel(
        dim=config.dim, in_dim=16, ffn_dim=config.ffn_dim, out_dim=16, text_dim=config.text_dim,
        freq_dim=config.freq_dim, eps=config.eps, patch_size=config.patch_size, num_heads=config.num_heads,
        num_layers=config.num_layers, has_image_input=False,
    )  # fmt: skip
    blocks = plain.blocks
    dit = OmniAvatarDiT.upgrade(plain, config)
    assert dit is plain and dit.blocks is blocks
    dit.load_state_dict(golden.weights(), strict=True, assign=True)
    tensors = golden.tensors("dit_i2v")
    out = run(dit.eval(), tensors, "A.", 500.0, case_audio(golden, "A"))
    assert torch.equal(out, run(golden.dit(), tensors, "A.", 500.0, case_audio(golden, "A")))


@pytest.mark.parametrize(
    ("preset", "layers", "shape"),
    [("1.3B", 14, [1536, 33, 1, 2, 2]), ("14B", 19, [5120, 33, 1, 2, 2])],
)
def test_published_sizes(preset, layers, shape):
    shapes = state_dict_shapes(PRESETS[preset])
    assert shapes["patch_embedding.weight"] == shape
    assert shapes["audio_proj.proj.weight"] == [32, 43008]
    assert sum(name.startswith("audio_cond_projs") for name in shapes) == 2 * layers


def test_wrong_shapes_are_named(golden, dit):
    tensors = golden.tensors("dit_i2v")
    x, y, context = (tensors[f"A.in.{name}"] for name in ("x", "y", "context"))
    audio = case_audio(golden, "A")
    with pytest.raises(ValueError, match=r"16 \+ 33 channels.*33"):
        dit(x, torch.tensor([500.0]), context, torch.cat([y, y[:, :16]], 1), audio)
    wanted = f"wanted \\[batch, {audio.shape[1]}, {audio.shape[2]}\\]"
    with pytest.raises(ValueError, match=wanted):
        dit(x, torch.tensor([500.0]), context, y, audio[:, 1:])
    with pytest.raises(ValueError, match="not a multiple"):
        dit(x[..., 1:], torch.tensor([500.0]), context, y[..., 1:], audio)


def test_impossible_sizes_are_named():
    with pytest.raises(ValueError, match=r"in_dim is 48.*num_layers is 2"):
        OmniAvatarConfig(dim=96, ffn_dim=128, num_heads=3, num_layers=2, in_dim=48)
    with pytest.raises(ValueError, match="head width 64"):
        OmniAvatarConfig(dim=128, ffn_dim=128, num_heads=2, num_layers=4)
