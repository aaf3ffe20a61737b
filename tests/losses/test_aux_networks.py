"""The networks of the auxiliary losses equal the originals, load their files strictly and stay as they are."""

import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from goldens_aux.make_goldens import SIZES, fill, inp, pictures, sound
from recipe import keyed_randn
from safetensors.torch import load_file
from small_networks import small_syncnet, small_videomae
from torch import Tensor, nn

from diffsynth_omniavatar.losses import frozen, lpips, sync, syncnet, trepa, windows
from diffsynth_omniavatar.losses.mel import mel_spectrogram, mel_window
from diffsynth_omniavatar.losses.sync import SyncLoss
from diffsynth_omniavatar.losses.syncnet import StableSyncNet
from diffsynth_omniavatar.losses.trepa import TrepaLoss, VideoMAE

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

FOLDER = Path(os.environ.get("OMNIAVATAR_GOLDENS_AUX", Path(__file__).resolve().parents[1] / "goldens_aux"))
TOLERANCE = 1e-5


def golden(name: str) -> dict[str, Tensor]:
    meta = json.loads((FOLDER / "meta.json").read_text())
    assert meta == {"seed": 0, **SIZES}, f"{FOLDER} was made from other sizes: run its make_goldens.py"
    return load_file(FOLDER / f"{name}.safetensors")


def close(got: Tensor, wanted: Tensor) -> None:
    """Within 1e-5 of the largest magnitude."""
    error = (got.detach() - wanted).abs().max() / wanted.abs().max()
    assert got.shape == wanted.shape and error <= TOLERANCE, f"off by {error:.1e} of the largest"


@pytest.fixture(scope="module")
def lpips_network() -> nn.Module:
    package = pytest.importorskip("lpips")
    network = lpips._quietly(package.LPIPS, net="vgg", pnet_rand=True, verbose=False)
    fill(network.net)
    frozen.freeze(network, "cpu", torch.float32)
    return network


@pytest.fixture(autouse=True)
def logged_anew() -> None:
    windows.windows.cache_clear()
    windows._tell_if_squeezed.cache_clear()


def clip(name: str, frames: int = 16, size: int = 32, batch: int = 1) -> Tensor:
    return 0.5 * keyed_randn(name, [batch, 3, frames, size, size], 0)


def a_mel(name: str = "a", batch: int = 1) -> Tensor:
    return keyed_randn(f"mel {name}", [batch, 80, 52], 0)


# -------------------------------------------------------------------------------------------------- equals the original


def test_syncnet_and_its_loss_equal_the_originals():
    """In float64: the rounding of its many layers in float32 depends on the processor and comes near the tolerance."""
    wanted = golden("sync")
    network, mel = small_syncnet(torch.float64), inp("sync", "mel", SIZES["sync"]["mel"], 0).double()
    frames = pictures("sync", "frames").double().requires_grad_(True)
    loss = SyncLoss(network)
    halves = windows.lower_half(windows.resize(frames, 256)).transpose(1, 2).flatten(1, 2)
    for got, name in zip(network(halves, mel[:, None]), ("vision", "audio"), strict=True):
        close(got, wanted[name])
    each = [loss.window_loss(frames[i : i + 1], mel[i : i + 1]) for i in range(len(frames))]
    close(torch.stack(each), wanted["losses"])
    value = loss.window_loss(frames, mel)
    close(value, wanted["losses"].mean())
    close(torch.autograd.grad(value, frames)[0][:, :, ::5, ::6, ::6], wanted["gradient"])


def test_mel_equals_the_original():
    close(mel_spectrogram(sound(SIZES["mel"]["samples"])), golden("mel")["mel"])


def test_videomae_and_its_loss_equal_the_originals():
    wanted, size = golden("trepa"), SIZES["trepa"]["size"]
    network = small_videomae(size=size)
    close(network(torch.sigmoid(inp("trepa", "clip", [1, 3, 16, size, size], 0))), wanted["features"])
    predicted, target = pictures("trepa", "predicted").requires_grad_(True), pictures("trepa", "target")
    value = TrepaLoss(network).window_loss(predicted, target)
    close(value, wanted["loss"])
    close(torch.autograd.grad(value, predicted)[0][:, :, ::5, ::6, ::6], wanted["gradient"])


def test_videomae_equals_the_one_of_transformers():
    """Which has the same tokens under other names."""
    from transformers import VideoMAEConfig, VideoMAEModel

    ours = small_videomae()
    config = VideoMAEConfig(
        image_size=56,
        patch_size=14,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=209,
        layer_norm_eps=1e-6,
        use_mean_pooling=True,
    )
    theirs = VideoMAEModel(config).eval()
    weights = ours.state_dict()
    renamed = {"embeddings.patch_embeddings.projection": "patch_embed.proj"}
    for i in range(3):
        layer, block = f"encoder.layer.{i}", f"blocks.{i}"
        renamed |= {f"{layer}.layernorm_before": f"{block}.norm1", f"{layer}.layernorm_after": f"{block}.norm2"}
        renamed |= {f"{layer}.intermediate.dense": f"{block}.mlp.fc1", f"{layer}.output.dense": f"{block}.mlp.fc2"}
        renamed |= {f"{layer}.attention.output.dense": f"{block}.attn.proj"}
    tensors = {f"{new}.{kind}": weights[f"{old}.{kind}"] for new, old in renamed.items() for kind in ("weight", "bias")}
    for i in range(3):
        layer, block = f"encoder.layer.{i}.attention.attention", f"blocks.{i}.attn"
        for name, part in zip(("query", "key", "value"), weights[f"{block}.qkv.weight"].chunk(3), strict=True):
            tensors[f"{layer}.{name}.weight"] = part
        names = {"q": "query.bias", "v": "value.bias"}
        if f"{layer}.q_bias" in theirs.state_dict():  # before transformers 5
            names = {"q": "q_bias", "v": "v_bias"}
        tensors |= {f"{layer}.{name}": weights[f"{block}.{kind}_bias"] for kind, name in names.items()}
    theirs.load_state_dict(tensors)
    frames = torch.sigmoid(clip("frames", size=56, batch=2))
    with torch.no_grad():
        tokens = theirs(frames.transpose(1, 2)).last_hidden_state
    close(ours(frames), ours.fc_norm(tokens.mean(dim=1)))


def test_lpips_equals_the_original(lpips_network):
    predicted, target = pictures("lpips", "predicted"), pictures("lpips", "target")
    wanted = golden("lpips")["distances"]
    loss = lpips.LpipsLoss(lpips_network)
    each = [loss.window_loss(predicted[:, :, i : i + 1], target[:, :, i : i + 1]) for i in range(len(wanted))]
    close(torch.stack(each), wanted)


@pytest.mark.parametrize(("network", "file"), [(StableSyncNet, "stable_syncnet.txt"), (VideoMAE, "vit_g.txt")])
def test_full_size_has_the_names_and_shapes_of_the_official_file(network: Callable[[], nn.Module], file: str):
    with torch.device("meta"):
        built = network()
    lines = [f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in built.state_dict().items()]
    assert sorted(lines) == sorted((FOLDER / file).read_text().splitlines())


# ---------------------------------------------------------------------------------------------------------------- files


def full_size_file(path: Path, network: type[nn.Module], change: Callable[[dict], Any] = dict) -> Path:
    """Names and shapes of the official file in a few kilobytes: each tensor is one number, repeated."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in network().state_dict().items()}
    torch.save(change({name: torch.full([1], 0.5).expand(shape) for name, shape in shapes.items()}), path)
    return path


LOADERS = [(syncnet.load_syncnet, StableSyncNet), (trepa.load_videomae, VideoMAE)]
BY_LOADER = pytest.mark.parametrize(("load", "network"), LOADERS, ids=["sync", "trepa"])


@BY_LOADER
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda weights: {"state_dict": weights, "global_step": 7},
        lambda weights: {"model": weights},
        lambda weights: {"module": weights, "epoch": 3},
        lambda weights: {"model": {"state_dict": weights}},
    ],
    ids=["flat", "state_dict", "model", "module", "nested"],
)
def test_official_files_load_however_they_are_wrapped(load, network, wrap, tmp_path):
    loaded = load(full_size_file(tmp_path / "file.pt", network, wrap))
    assert all(not p.requires_grad and p.flatten()[0] == 0.5 for p in loaded.parameters())
    assert not loaded.training


@BY_LOADER
def test_another_network_is_refused_and_all_faults_are_named(load, network, tmp_path):
    def change(weights: dict) -> dict:
        removed, *_, reshaped = weights
        del weights[removed]
        weights[reshaped] = torch.zeros(3, 5)
        return {"state_dict": weights | {"extra": torch.zeros(1)}}

    path = full_size_file(tmp_path / "file.pt", network, change)
    with pytest.raises(ValueError, match=r"is missing; extra is not known; .* is \[3, 5\], not \[\d+\].*get .*pt"):
        load(path)


@BY_LOADER
def test_files_that_are_none_say_where_to_get_them(load, network, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt does not exist.*huggingface"):
        load(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Path, protocol=2))
    for name in ("text.pt", "pickle.pt"):
        with pytest.raises(ValueError, match="no file of tensors"):
            load(tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list"):
        load(tmp_path / "list.pt")


def vgg_weights(network: nn.Module) -> dict[str, Tensor]:
    """As torchvision's file has them."""
    features = {f"features.{name.split('.', 1)[1]}": value for name, value in network.net.state_dict().items()}
    return {**features, "classifier.0.weight": torch.zeros(2, 2)}


def test_vgg_loads_from_torchvisions_file(lpips_network, tmp_path):
    torch.save(vgg_weights(lpips_network), tmp_path / "vgg16.pth")
    loaded = lpips.load_lpips(tmp_path / "vgg16.pth")
    frames = clip("a", 1, 64), clip("b", 1, 64)
    assert torch.equal(lpips.LpipsLoss(loaded)(*frames), lpips.LpipsLoss(lpips_network)(*frames))


def test_another_vgg_is_refused(lpips_network, tmp_path):
    weights = vgg_weights(lpips_network)
    weights["features.30.weight"] = weights.pop("features.28.weight")
    torch.save(weights, tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match=r"slice5\.28\.weight is missing; features\.30\.weight is not known.*vgg16-"):
        lpips.load_lpips(tmp_path / "vgg16.pth")


def test_without_network_lpips_says_which_file_to_get(monkeypatch):
    package = pytest.importorskip("lpips")

    def offline(**_: Any) -> None:
        raise URLError("no route")

    monkeypatch.setattr(package, "LPIPS", offline)
    with pytest.raises(FileNotFoundError, match=r"vgg16-397923af\.pth and give its path"):
        lpips.load_lpips()


# -------------------------------------------------------------------------------------------------------------- windows


def test_windows_are_whole_and_what_is_left_over_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        assert windows.windows(33, 16, 16) == (range(16), range(16, 32))
        windows.windows(33, 16, 16)
    assert [record.message[:41] for record in caplog.records] == ["1 of 33 frames are in no window (16 frame"]
    assert windows.windows(16, 16, 5) == (range(16),)
    assert windows.windows(32, 16, 8)[-1] == range(16, 32)


@pytest.mark.parametrize("arguments", [(15, 16, 16), (0, 16, 16), (16, 0, 1), (16, 16, 0)])
def test_no_window_is_an_error(arguments):
    with pytest.raises(ValueError, match="frames"):
        windows.windows(*arguments)


def test_a_short_clip_is_an_error_everywhere():
    short = clip("short", frames=15)
    sync_loss, trepa_loss = SyncLoss(small_syncnet()), TrepaLoss(small_videomae())
    mel = mel_spectrogram(sound(32000))
    with pytest.raises(ValueError, match="15 frames are too few"):
        sync_loss(short, [mel], [0])
    with pytest.raises(ValueError, match="15 frames are too few"):
        trepa_loss(short, short)
    with pytest.raises(ValueError, match="wanted floating"):
        sync_loss.window_loss(short, a_mel())
    with pytest.raises(ValueError, match="wanted floating"):
        trepa_loss.window_loss(short, short)


def test_windows_without_sound_are_not_used_and_none_is_an_error(caplog):
    loss = SyncLoss(small_syncnet(), stride=8)
    mel = mel_spectrogram(sound(640 * 30))  # of 30 frames
    assert loss.windows(30, mel) == (range(16), range(8, 24))
    assert not caplog.records
    assert loss.windows(40, mel) == (range(16), range(8, 24))
    assert "2 of 4 windows" in caplog.text
    assert loss.windows(40, mel, first_frame=10) == (range(16),)
    with pytest.raises(ValueError, match="columns end before the first 16 frames from frame 15"):
        loss.windows(40, mel, first_frame=15)


@pytest.mark.parametrize("frames", [16, 17, 18, 19, 20, 81])
def test_sound_as_long_as_the_clip_reaches_its_last_window(frames):
    mel = mel_spectrogram(sound(640 * frames))
    assert SyncLoss(small_syncnet(), stride=1).windows(frames, mel) == windows.windows(frames, 16, 1)
    assert mel_window(mel, frames - 16).shape == (80, 52)
    with pytest.raises(ValueError, match="use windows that have sound"):
        mel_window(mel, frames - 15)


def test_the_mel_of_the_whole_is_not_that_of_a_part():
    whole = mel_spectrogram(sound(32000))
    part = mel_spectrogram(sound(32000)[640 * 10 : 640 * 26])
    assert (whole[:, 32 + 3 : 32 + 49] - part[:, 3:49]).abs().max() < 1e-5
    assert (mel_window(whole, 10) - part[:, :52]).abs().max() > 0.1


def test_the_mean_over_windows_is_that_of_a_loop(lpips_network):
    predicted, target = clip("predicted", 28, batch=2), clip("target", 28, batch=2)
    sync_loss, trepa_loss = SyncLoss(small_syncnet(), stride=12), TrepaLoss(small_videomae(), stride=12)
    mels, firsts = [mel_spectrogram(sound(640 * n)) for n in (31, 28)], [3, 0]
    pairs = [(i, w) for i in range(2) for w in sync_loss.windows(28, mels[i], firsts[i])]
    one_by_one = [
        sync_loss.window_loss(predicted[i : i + 1, :, list(w)], mel_window(mels[i], firsts[i] + w[0])[None])
        for i, w in pairs
    ]
    assert len(pairs) == 4
    assert torch.allclose(sync_loss(predicted, mels, firsts), torch.stack(one_by_one).mean(), rtol=1e-6)
    cut = [trepa_loss.window_loss(predicted[:, :, list(w)], target[:, :, list(w)]) for w in trepa_loss.windows(28)]
    assert torch.allclose(trepa_loss(predicted, target), torch.stack(cut).mean(), rtol=1e-6)
    few = predicted[:, :, :5], target[:, :, :5]
    assert torch.allclose(
        lpips.LpipsLoss(lpips_network, window=2)(*few), lpips.LpipsLoss(lpips_network).window_loss(*few), rtol=1e-5
    )
    assert lpips.LpipsLoss(lpips_network, window=2).windows(5) == (range(2), range(2, 4), range(4, 5))


# ------------------------------------------------------------------------------------------------------------- gradient


def losses_of(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "sync":
        loss = SyncLoss(small_syncnet(dtype, **options))
        return lambda predicted, _: loss.window_loss(predicted, a_mel())
    return TrepaLoss(small_videomae(dtype, **options)).window_loss


def gradient_of(loss: Callable[[Tensor, Tensor], Tensor], scale: float = 1.0) -> Tensor:
    predicted = clip("predicted").requires_grad_(True)
    return torch.autograd.grad(loss(predicted, bright()) * scale, predicted)[0]


def bright() -> Tensor:
    """A target that differs from the prediction by more than rounding does."""
    return 0.2 * clip("target") + 0.7


def assert_alike(got: Tensor, wanted: Tensor, cosine: float) -> None:
    assert F.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > cosine
    assert 0.95 < got.norm() / wanted.norm() < 1.05


@pytest.mark.parametrize("name", ["sync", "trepa"])
def test_gradient_goes_into_the_prediction_alone(name):
    network = small_syncnet() if name == "sync" else small_videomae()
    predicted, target = clip("predicted").requires_grad_(True), clip("target").requires_grad_(True)
    if name == "sync":
        SyncLoss(network).window_loss(predicted, a_mel()).backward()
        assert predicted.grad[..., 18:, :].abs().min() > 0  # the lower half, less what bicubic weights reach beyond
        assert not predicted.grad[..., :13, :].any()
    else:
        TrepaLoss(network).window_loss(predicted, target).backward()
        assert (predicted.grad != 0).float().mean() > 0.9
    assert target.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())


def test_lpips_gradient_goes_into_the_prediction_alone(lpips_network):
    predicted, target = clip("predicted", 1, 64).requires_grad_(True), clip("target", 1, 64).requires_grad_(True)
    lpips.LpipsLoss(lpips_network)(predicted, target).backward()
    assert predicted.grad[..., 32:, :].any() and not predicted.grad[..., :32, :].any()
    assert target.grad is None
    assert all(parameter.grad is None for parameter in lpips_network.parameters())


@pytest.mark.parametrize("name", ["sync", "trepa"])
def test_checkpointing_changes_nothing(name):
    assert torch.equal(gradient_of(losses_of(name)), gradient_of(losses_of(name, checkpointing=True)))


@pytest.mark.parametrize("name", ["sync", "trepa"])
def test_bfloat16_follows_float32(name):
    exact, loss = losses_of(name), losses_of(name, torch.bfloat16)
    value = loss(clip("predicted"), bright())
    assert value.dtype == torch.float32
    assert torch.allclose(value, exact(clip("predicted"), bright()), rtol=0.05)
    assert_alike(gradient_of(loss), gradient_of(exact), 0.98)


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_float16_keeps_the_gradient_however_small_the_weight(scale):
    exact = gradient_of(losses_of("trepa"))
    assert_alike(gradient_of(losses_of("trepa", torch.float16), scale) / scale, exact, 0.999)


def test_float16_leaves_other_gradients_alone():
    encoder = syncnet.Encoder(3, [32, 32], [(2, 2), (2, 2)], [1], False)
    fill(encoder)
    frozen.freeze(encoder, "cpu", torch.float16)
    x = keyed_randn("x", [1, 3, 16, 16], 0).requires_grad_(True)
    alone = torch.autograd.grad(frozen.judge(encoder, x).sum() * 1e-8, x)[0]
    both = torch.autograd.grad(frozen.judge(encoder, x).sum() * 1e-8 + 3 * x.sum(), x)[0]
    assert alone.abs().max() > 1e-9
    assert torch.allclose(both, alone + 3)
    assert not torch.autograd.grad(frozen.judge(encoder, x).sum() * 0, x)[0].any()


@pytest.mark.parametrize("name", ["sync", "trepa"])
def test_autocast_around_does_not_lower_the_precision(name):
    loss = losses_of(name)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(clip("predicted"), clip("target"))
    assert torch.equal(inside, loss(clip("predicted"), clip("target")))


def test_cosine_loss_is_the_cross_entropy_with_a_bounded_gradient():
    cosines = torch.linspace(sync.LEAST_COSINE, 1, 50)
    assert torch.allclose(sync.cosine_loss(cosines), F.binary_cross_entropy(cosines, torch.ones(50), reduction="none"))
    at = torch.tensor([0.0, 5e-4, 0.999e-3, 1.001e-3, 0.5, 1.0, 1.0 + 1e-6], requires_grad=True)
    values = sync.cosine_loss(at)
    slopes = torch.autograd.grad(values.sum(), at)[0]
    assert torch.allclose(slopes[:5], torch.tensor([-1000.0, -1000.0, -1000.0, -999.0, -2.0]), rtol=1e-3)
    assert (values[:-1] >= values[1:]).all() and values.isfinite().all() and (values >= 0).all()


def test_the_logits_form_is_that_of_the_cross_entropy_with_logits():
    network, frames = small_syncnet(), clip("predicted")
    cosine = torch.exp(-SyncLoss(network).window_loss(frames, a_mel()))
    wanted = F.binary_cross_entropy_with_logits(cosine, torch.ones(()))
    assert torch.allclose(SyncLoss(network, form="logits").window_loss(frames, a_mel()), wanted)
    with pytest.raises(ValueError, match="form"):
        SyncLoss(network, form="hinge")


# ---------------------------------------------------------------------------------------------------------------- usage


def test_losses_do_not_become_parts_of_a_module(lpips_network):
    module = nn.Module()
    module.losses = SyncLoss(small_syncnet())
    module.more = TrepaLoss(small_videomae())
    module.again = lpips.LpipsLoss(lpips_network)
    assert not list(module.parameters()) and not module.state_dict()


def test_a_squeezed_picture_is_told_once(caplog):
    for _ in range(2):
        windows.resize(torch.zeros(1, 3, 1, 30, 20), 32)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    square = torch.rand(1, 3, 2, 32, 32)
    assert windows.resize(square, 32) is square


@pytest.mark.parametrize("shape", [[3, 16, 8, 8], [1, 4, 16, 8, 8]])
def test_wrong_shapes_are_refused(shape, lpips_network):
    frames = torch.zeros(shape)
    for call in (
        lambda: SyncLoss(small_syncnet())(frames, [torch.zeros(80, 60)], [0]),
        lambda: TrepaLoss(small_videomae())(frames, frames),
        lambda: lpips.LpipsLoss(lpips_network)(frames, frames),
    ):
        with pytest.raises(ValueError, match=r"wanted floating \[B, 3, F, H, W\]"):
            call()


def test_prediction_and_target_must_have_one_shape(lpips_network):
    for loss in (TrepaLoss(small_videomae()), lpips.LpipsLoss(lpips_network)):
        with pytest.raises(ValueError, match="like the prediction"):
            loss(clip("a"), clip("b", frames=17))
    with pytest.raises(ValueError, match=r"mel: got \[2, 80, 52\], wanted \[1, 80, 52\]"):
        SyncLoss(small_syncnet()).window_loss(clip("a"), a_mel(batch=2))


@pytest.mark.parametrize("waveform", [torch.zeros(0), torch.zeros(2, 100), torch.zeros(100, dtype=torch.int16)])
def test_a_waveform_is_one_floating_row(waveform):
    with pytest.raises(ValueError, match="mono, 16 kHz"):
        mel_spectrogram(waveform)
