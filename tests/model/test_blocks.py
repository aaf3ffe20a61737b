"""The fast blocks compute what the host's blocks compute, whatever they keep for the backward pass."""

import dataclasses
import gc
import math
import shutil
import weakref
from itertools import combinations

import pytest
import torch
from golden_models import Goldens, relative_deviation
from torch.utils.checkpoint import checkpoint

from diffsynth_omniavatar import host
from diffsynth_omniavatar.model.blocks import memory_plan, pieces, runner
from diffsynth_omniavatar.model.blocks.attention import Attention
from diffsynth_omniavatar.model.blocks.block import BlockCall, run_block
from diffsynth_omniavatar.model.blocks.forward import pre_attention, rotate
from diffsynth_omniavatar.model.blocks.memory_plan import KEEPABLE, BlockShape, describe, kept_bytes, plan_kept
from diffsynth_omniavatar.model.blocks.runner import BlockRunner, rotary_tables
from diffsynth_omniavatar.model.blocks.weights import Modulation, block_weights
from diffsynth_omniavatar.model.config import LoRAConfig
from diffsynth_omniavatar.training import module
from diffsynth_omniavatar.training.module import add_lora, choose_blocks, select_trainable
from diffsynth_omniavatar.training.settings import StepSettings

OUTPUT_TOLERANCE = 1e-5  # of the goldens' README
GRADIENT_TOLERANCE = 5e-5
BLOCK_TOLERANCE = 2e-6  # float32, other order of the same operations
GRID = (3, 4, 4)
ALL_SETS = [frozenset(names) for count in range(5) for names in combinations(KEEPABLE, count)]
LENGTHS = ((3, 4), (2, 4), (5, 6))
compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
of_the_compiler = pytest.mark.one_host("pieces hold no code of DiffSynth; a compiled clip is made on both hosts")
OPTIONS = [{}, {"use_gradient_checkpointing": True}, {"use_gradient_checkpointing_offload": True}]


@pytest.fixture(scope="module")
def golden(goldens):
    return Goldens(goldens)


def adapted(golden):
    """The golden denoiser with LoRA of rank 4, both parts of it random."""
    dit = golden.dit()
    add_lora(dit, LoRAConfig(rank=4, alpha=8.0))
    select_trainable(dit, full=False)
    generator = torch.Generator().manual_seed(0)
    for name, value in dit.named_parameters():
        if "lora_" in name:
            value.data = 0.1 * torch.randn(value.shape, generator=generator)
    return dit


class OneBlock:
    """A block of the golden denoiser with LoRA, its inputs, and what the host makes of them."""

    def __init__(self, golden):
        dit = adapted(golden)
        self.block = dit.blocks[1]
        generator = torch.Generator().manual_seed(1)
        dim, tokens = dit.config.dim, GRID[0] * GRID[1] * GRID[2]
        self.x = torch.randn(2, tokens, dim, generator=generator).requires_grad_()
        self.text = torch.randn(2, 7, dim, generator=generator)
        self.t_mod = 0.3 * torch.randn(2, 6, dim, generator=generator)
        self.grad = torch.randn(2, tokens, dim, generator=generator)
        self.freqs = dit._rotary_frequencies(GRID, torch.device("cpu"))
        self.rotary = rotary_tables(dit.freqs, GRID, torch.device("cpu"))
        self.wanted = self.backward(self.block(self.x, self.text, self.t_mod, self.freqs))

    def backward(self, result):
        """The result and the gradients by the input and by the adapters."""
        weights = block_weights(self.block).adapters
        return result.detach(), *torch.autograd.grad(result, [self.x, *weights], self.grad)

    def call(self, keep=frozenset(), functions=pieces.EAGER):
        modulation = Modulation(*(self.block.modulation + self.t_mod).chunk(6, dim=1))
        weights = lambda: block_weights(self.block)  # noqa: E731
        return BlockCall(weights, self.text, modulation, self.rotary, keep, functions)

    def run(self, keep):
        return run_block(self.call(keep), self.x, block_weights(self.block).adapters)

    def deviation(self, results):
        return max(relative_deviation(a, b) for a, b in zip(results, self.wanted, strict=True))


@pytest.fixture(scope="module")
def one(golden):
    return OneBlock(golden)


@pytest.mark.parametrize("keep", ALL_SETS, ids=lambda keep: "+".join(sorted(keep)) or "nothing")
def test_a_block_equals_the_hosts_and_what_it_keeps_changes_no_bit(one, keep):
    results = one.backward(one.run(keep))
    assert one.deviation(results) < BLOCK_TOLERANCE
    kept_all = one.backward(one.run(frozenset(KEEPABLE)))
    assert all(torch.equal(a, b) for a, b in zip(results, kept_all, strict=True))


def test_attention_in_float8_trains_and_what_is_kept_changes_no_bit(one):
    weights = block_weights(one.block).adapters
    runs = []
    for keep in (frozenset(), frozenset(["attention"]), frozenset(KEEPABLE)):
        call = dataclasses.replace(one.call(keep), attention_fp8=True)
        runs.append(one.backward(run_block(call, one.x, weights)))
    for found, wanted in zip(runs[0], one.wanted, strict=True):
        assert 1e-6 < relative_deviation(found, wanted) < 0.15
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("keep", [frozenset(), frozenset(KEEPABLE)], ids=["nothing", "all"])
def test_under_autocast_a_block_is_as_near_as_the_hosts(one, keep):
    """As a launcher with mixed precision runs it; autograd's backward pass is outside of autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        hosts = one.block(one.x, one.text, one.t_mod, one.freqs)
        ours = one.run(keep)
    hosts, ours = one.backward(hosts), one.backward(ours)
    assert [value.dtype for value in ours] == [value.dtype for value in hosts]
    assert 1e-4 < one.deviation(ours) < 1.5 * one.deviation(hosts)


def test_autograd_differentiates_the_pieces_too(one):
    assert one.deviation(one.backward(one.call().plain(one.x))) < BLOCK_TOLERANCE
    recomputed = one.backward(checkpoint(one.call().plain, one.x, use_reentrant=False))
    assert one.deviation(recomputed) < BLOCK_TOLERANCE


def test_a_block_keeps_its_input_and_what_it_is_told_to(one):
    dim, hidden = one.block.dim, one.block.ffn_dim
    rows = one.x.shape[0] * one.x.shape[1]
    widths = {"attention": 1, "middle": 3, "qkv": 3, "ffn": hidden / dim}
    for keep in ALL_SETS:
        _, saved = one.call(keep).forward(one.x.detach())
        kept = [value for value in vars(saved).values() if isinstance(value, torch.Tensor)]
        numbers = sum(value.numel() for value in kept)
        if saved.attention is not None:
            assert not saved.attention._inputs
            numbers += saved.attention.output.numel()
        assert numbers == round(rows * dim * sum(widths[name] for name in keep))


def test_attention_does_not_hold_its_inputs(one):
    """Neither q, k nor v live on between the passes, although the kernel wants them for its gradient."""
    heads, shape = one.block.num_heads, (1, 8, one.block.dim)
    leaves = [torch.randn(shape).requires_grad_() for _ in range(3)]
    grad = torch.randn(shape)
    wanted = torch.autograd.grad(host.flash_attention(*leaves, num_heads=heads), leaves, grad)
    inputs = [leaf.detach().clone() for leaf in leaves]
    attention = Attention(*inputs, heads)
    for value in inputs:
        value.fill_(torch.nan)
    found = attention.backward(grad, *(leaf.detach() for leaf in leaves))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("began", [False, True])
def test_attention_without_a_backward_pass_leaves_nothing(one, began):
    """As when a step is broken off: no cycle through autograd's graph holds its result."""
    attention = Attention(*torch.randn(3, 1, 8, one.block.dim), one.block.num_heads)
    result = weakref.ref(attention._output)
    if began:
        with pytest.raises(RuntimeError):
            attention.backward(torch.randn(1), *torch.randn(3, 1, 8, one.block.dim))
    del attention
    gc.collect()
    assert result() is None


@pytest.mark.parametrize("tokens", [1, 16, 40])
@pytest.mark.parametrize("keep", [ALL_SETS[0], ALL_SETS[-1]], ids=["nothing", "all"])
def test_the_backward_pass_in_chunks_equals_the_whole_one(one, monkeypatch, keep, tokens):
    monkeypatch.setattr(memory_plan, "CHUNK", tokens)
    assert one.deviation(one.backward(one.run(keep))) < BLOCK_TOLERANCE


@pytest.mark.parametrize(("tokens", "count"), [(8192, 1), (21504, 3), (32760, 4), (8193, 3), (16411, 3)])
def test_chunks_are_equal_where_they_can_be(tokens, count):
    assert memory_plan.chunk_count(1, tokens) == count


def test_rotary_embedding_in_float32_is_near_the_one_in_float64(one):
    heads = one.block.num_heads
    x = torch.randn(2, one.x.shape[1], one.block.dim)
    pairs = torch.view_as_complex(x.double().view(2, x.shape[1], heads, -1, 2))
    exact = torch.view_as_real(pairs * one.freqs).flatten(2)
    assert relative_deviation(rotate(x, *one.rotary).double(), exact) < 3e-7


@compiles
@of_the_compiler
@pytest.mark.slow
def test_a_compiled_piece_equals_the_piece(one):
    w, m = one.call().weights(), one.call().modulation
    found = torch.compile(pre_attention, fullgraph=True)(one.x.detach(), m, one.rotary, w)
    wanted = pre_attention(one.x.detach(), m, one.rotary, w)
    assert all(relative_deviation(a, b) < BLOCK_TOLERANCE for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("chunk", [memory_plan.CHUNK, 24])
@of_the_compiler
@pytest.mark.slow
def test_compiling_serves_all_blocks_and_lengths(golden, monkeypatch, chunk):
    """The compiler runs for the first length, and once more for all others; never for another block or chunk."""
    monkeypatch.setattr(memory_plan, "CHUNK", chunk)
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    use_compiler(monkeypatch, "eager")  # what is compiled anew is the tracer's choice, whatever compiles it
    dit = adapted(golden)
    wanted = [gradients(golden, dit, *size) for size in LENGTHS]
    dit.runner = BlockRunner(compile=True)
    counts = []
    for size, (output, by_name) in zip(LENGTHS, wanted, strict=True):
        found, found_by_name = gradients(golden, dit, *size, use_gradient_checkpointing=True)
        assert relative_deviation(found, output) < OUTPUT_TOLERANCE
        for name, value in by_name.items():
            assert relative_deviation(found_by_name[name], value) < GRADIENT_TOLERANCE, name
        counts.append(graphs["unique_graphs"] - before)
    pieces_of_a_step = 8
    assert counts[0] <= pieces_of_a_step
    assert counts[1] <= 2 * pieces_of_a_step
    assert counts[1] == counts[2]


@pytest.mark.parametrize(
    ("adapt", "flags"),
    [(False, {}), (True, {}), (True, {"use_gradient_checkpointing": True})],
    ids=["full", "LoRA, all kept", "LoRA, nothing kept"],
)
@of_the_compiler
def test_under_autocast_compiled_gradients_are_as_near_as_the_hosts(golden, monkeypatch, adapt, flags):
    dit = adapted(golden) if adapt else golden.dit()
    _, wanted = gradients(golden, dit, 3, 4)
    _, hosts = gradients(golden, dit, 3, 4, autocast=True)
    use_compiler(monkeypatch, "aot_eager")
    dit.runner = BlockRunner(compile=True)
    _, ours = gradients(golden, dit, 3, 4, autocast=True, **flags)
    assert ours.keys() == wanted.keys()
    assert 0 < deviation_of_all(ours, wanted) < 1.5 * deviation_of_all(hosts, wanted)


def use_compiler(monkeypatch, backend):
    compiled = pieces.compiled(backend)
    monkeypatch.setattr(runner, "compiled", lambda **_: compiled)


def deviation_of_all(found, wanted):
    """The norm of the differences."""
    return math.sqrt(sum((found[name].float() - value).square().sum() for name, value in wanted.items()))


def gradients(golden, dit, frames, columns, autocast=False, **flags):
    """The denoiser's result and the gradients of its mean square by all that trains."""
    generator = torch.Generator().manual_seed(frames)
    x, y = (torch.randn(1, c, frames, 8, 2 * columns, generator=generator) for c in (16, 17))
    text = torch.randn(1, 7, golden.dims["text_dim"], generator=generator)
    audio = torch.randn(1, 4 * frames - 3, golden.meta["audio_dim"], generator=generator)
    dit.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = dit(x, torch.tensor([500.0]), text, y, audio, **flags).float()
    if torch.is_grad_enabled():
        result.square().mean().backward()
    return result.detach(), {n: p.grad.clone() for n, p in dit.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("budget", [0.0, 1e-4, 4e-4, 1.0, None])
@pytest.mark.parametrize("flags", OPTIONS)
def test_lora_gradients_of_the_denoiser_equal_the_hosts(golden, budget, flags):
    dit = adapted(golden)
    wanted, wanted_gradients = gradients(golden, dit, 3, 4)
    dit.runner = BlockRunner(activation_memory=budget)
    found, found_gradients = gradients(golden, dit, 3, 4, **flags)
    assert relative_deviation(found, wanted) < OUTPUT_TOLERANCE
    assert found_gradients.keys() == wanted_gradients.keys()
    for name, value in wanted_gradients.items():
        assert relative_deviation(found_gradients[name], value) < GRADIENT_TOLERANCE, name


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_weights_that_wait_in_main_memory_change_no_bit(golden, budget):
    """On several steps of one model, with a pass without gradients between them, as validation makes it."""
    dit = adapted(golden)
    dit.runner = BlockRunner(activation_memory=budget)
    sizes = [(3, 4), (2, 4)]
    wanted = [gradients(golden, dit, *size) for size in sizes]
    dit.runner.stream_weights(dit.blocks, torch.device("cpu"))
    assert all(value.numel() == 0 for block in dit.blocks for value in block_weights(block).frozen)
    for size, (output, by_name) in zip(sizes, wanted, strict=True):
        with torch.no_grad():
            gradients_off = gradients(golden, dit, *size)[0]
        found, found_by_name = gradients(golden, dit, *size)
        assert torch.equal(found, output) and torch.equal(gradients_off, output)
        assert all(torch.equal(found_by_name[name], value) for name, value in by_name.items())
    assert len(dit.runner.streamed._there) <= 2


@pytest.mark.parametrize("flags", OPTIONS)
def test_outputs_and_all_gradients_equal_upstream(golden, flags):
    """With all weights in training, against the goldens."""
    tensors, facts = golden.tensors("dit_grad"), golden.json("dit_grad")
    dit = golden.dit()
    dit.runner = BlockRunner()
    audio = golden.audio("dit_grad", "A/audio", golden.dims["A_t"])
    inputs = (tensors["in.x"], torch.tensor([facts["timestep"]]), tensors["in.context"], tensors["in.y"], audio)
    out = dit(*inputs, **flags)
    out.square().mean().backward()
    assert relative_deviation(out, tensors["out"]) < OUTPUT_TOLERANCE
    norms = {name: parameter.grad.norm().item() for name, parameter in dit.named_parameters()}
    for name, wanted in facts["grad_l2"].items():
        assert norms[name] == pytest.approx(wanted, rel=GRADIENT_TOLERANCE), name
    with torch.no_grad():
        assert relative_deviation(dit(*inputs), tensors["out"]) < OUTPUT_TOLERANCE


def test_layers_that_are_not_plain_are_refused(golden):
    dit = adapted(golden)
    dit.runner = BlockRunner()
    dit.blocks[0].self_attn.q.merge()
    with pytest.raises(ValueError, match=r"not with a Linear.*--reference"):
        gradients(golden, dit, 3, 4)


def test_weights_that_somebody_else_offloads_are_refused(golden):
    dit = adapted(golden)
    dit.runner = BlockRunner()
    for value in block_weights(dit.blocks[0]).frozen:
        value.data = torch.empty(0)
    with pytest.raises(ValueError, match="are elsewhere"):
        gradients(golden, dit, 3, 4)


SHAPES = [
    BlockShape(batch=1, tokens=21504, dim=5120, ffn_dim=13824, heads=40, element_size=2),
    BlockShape(batch=1, tokens=512, dim=1536, ffn_dim=8960, heads=12, element_size=2, attention_fp8=True),
    BlockShape(batch=4, tokens=512, dim=1536, ffn_dim=8960, heads=12, element_size=2),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_plans_stay_within_their_budget_and_grow_with_it(shape):
    everything = sum(shape.bytes_of.values()) * 40
    before = plan_kept(shape, 40, 0)
    assert kept_bytes(shape, before) == 0
    for budget in range(0, everything + 1, everything // 97):
        plan = plan_kept(shape, 40, budget)
        assert kept_bytes(shape, plan) <= budget
        assert all(small <= large for small, large in zip(before, plan, strict=True))
        before = plan
    assert plan_kept(shape, 40, everything) == (frozenset(KEEPABLE),) * 40


def test_plans_keep_first_what_is_dearest_to_compute():
    """At 14B and 81 frames of 512x512 a byte of attention saves eight times what a byte of a projection does."""
    long, *_, short = SHAPES
    assert long.order[0] == "attention"
    assert short.order[-1] == "attention"
    size = long.bytes_of["attention"]
    assert describe(plan_kept(long, 40, 3 * size + 1)) == "attention 3 of 40 blocks"
    assert [bool(kept) for kept in plan_kept(long, 40, 3 * size)] == [False] * 37 + [True] * 3
    assert dataclasses.replace(long, batch=2).bytes_of["attention"] == 2 * size


def test_settings_choose_the_blocks(golden):
    dit, device = adapted(golden), torch.device("cpu")

    def chosen(lora=True, **settings):
        choose_blocks(dit, StepSettings(**settings), device=device, lora=lora, auxiliary=False)
        return dit.runner

    assert chosen() is None
    assert chosen(compile=True, activation_memory=1.0, stream_weights=True, reference=True) is None
    assert chosen(compile=True, lora=False).compile
    assert chosen(activation_memory=2.0).activation_memory == 2.0
    assert [chosen(compile=True, fp32_master_weights=flag).moment_bytes for flag in (False, True)] == [None, 4]
    with pytest.raises(ValueError, match="need LoRA"):
        chosen(lora=False, activation_memory="auto")
    with pytest.raises(ValueError, match="measures a CUDA device"):
        chosen(activation_memory="auto")
        gradients(golden, dit, 3, 4)
    assert chosen(stream_weights=True).streamed is not None


def test_compiled_gradients_of_all_weights_are_refused_where_nobody_has_compared_them(golden, monkeypatch):
    dit, settings = golden.dit(), StepSettings(compile=True)
    monkeypatch.setattr(module, "TORCH", (2, 10))
    common = {"device": torch.device("cuda"), "auxiliary": False}
    with pytest.raises(ValueError, match=r"needs torch 2\.11.*Leave --compile away, or train a LoRA"):
        choose_blocks(dit, settings, lora=False, **common)
    choose_blocks(dit, settings, lora=True, **common)
    monkeypatch.setattr(module, "TORCH", (2, 11))
    choose_blocks(dit, settings, lora=False, **common)


@pytest.mark.parametrize("torch_version", [(2, 13), (2, 14)])
def test_what_autograd_differentiates_reads_nothing_back_where_torch_does_not_wait(golden, monkeypatch, torch_version):
    """Before torch 2.14 these pieces are compiled with other options; those of LoRA's own backward pass are not."""
    options = []
    monkeypatch.setattr(pieces, "TORCH", torch_version)
    monkeypatch.setattr(runner, "compiled", pieces.compiled.__wrapped__)
    monkeypatch.setattr(torch, "compile", lambda piece, **more: options.append(more["options"]) or piece)
    for dit, by_autograd in ((adapted(golden), False), (golden.dit().requires_grad_(), True)):
        options.clear()
        dit.runner = BlockRunner(compile=True)
        gradients(golden, dit, 3, 4)
        assert (pieces.COMPUTE_AGAIN in options) == (by_autograd and torch_version < (2, 14))


def test_another_grid_of_as_many_tokens_has_its_own_rotary_tables(golden):
    """2 frames of 4 x 6 tokens and 3 of 4 x 4, one after the other by the same runner."""
    dit = golden.dit()
    sizes = [(2, 6), (3, 4)]
    with torch.no_grad():
        wanted = [gradients(golden, dit, *size)[0] for size in sizes]
        dit.runner = BlockRunner()
        for size, output in zip(sizes, wanted, strict=True):
            assert relative_deviation(gradients(golden, dit, *size)[0], output) < OUTPUT_TOLERANCE
