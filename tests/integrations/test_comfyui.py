"""The ComfyUI nodes: what they declare is what they take and give, the examples fit them, and they run; no ComfyUI."""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from comfy_stand_in import NODES, WIDGETS, InterruptProcessingException, Management, loaded_nodes
from stand_in import write_nano_like_family

import diffsynth_omniavatar as omni
from diffsynth_omniavatar.nano.speaker.film import draw_film

pytestmark = pytest.mark.one_host("what the nodes hand to the package, whose own tests run on both")

IDS = {f"OmniAvatar{name}" for name in ("LoadModel", "LoRA", "Sampling", "Speech", "Talk", "Dub", "AlignFace",
                                        "PasteFace")}  # fmt: skip
EXAMPLES = ("talk", "dub", "faces")
QUICK = {"steps": 1, "cfg_scale": 1.0, "overlap": 1, "max_tokens": 36}
HOSTS_OUTPUTS = {
    "LoadImage": ("IMAGE", "MASK"),
    "LoadAudio": ("AUDIO",),
    "LoadVideo": ("VIDEO",),
    "GetVideoComponents": ("IMAGE", "AUDIO", "FLOAT"),
    "ImageSharpen": ("IMAGE",),
    "CreateVideo": ("VIDEO",),
    "SaveVideo": (),
}
"""What ComfyUI's own nodes in the examples give."""


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    """ComfyUI's management, its models folder with a quick model, and the nodes."""
    models = tmp_path_factory.mktemp("models")
    write_nano_like_family(models / "tiny")
    management = Management()
    with loaded_nodes(management, models) as nodes:
        yield SimpleNamespace(management=management, models=models, nodes=nodes)


def run(comfy, name, **given):
    """Execute a node with the defaults of what is not given; its outputs."""
    node = comfy.nodes[f"OmniAvatar{name}"]
    schema = node.define_schema()
    values = {
        entry.id: entry.options[0] if entry.options and entry.default is None else entry.default
        for entry in schema.inputs
        if entry.kinds[0] in WIDGETS
    }
    outputs = node.execute(**values | given).values
    assert len(outputs) == len(schema.outputs)
    return outputs


def load(comfy, model="nano"):
    return run(comfy, "LoadModel", model=model, folder="tiny")[0]


def audio(seconds=0.6, level=0.1):
    noise = torch.randn(1, 2, round(seconds * 24000), generator=torch.Generator().manual_seed(1))
    return {"waveform": level * noise, "sample_rate": 24000}


def test_what_a_node_declares_is_what_it_takes(comfy):
    assert set(comfy.nodes) == IDS
    for node in comfy.nodes.values():
        schema = node.define_schema()
        assert schema.display_name and schema.description and schema.category == "OmniAvatar"
        ids = [entry.id for entry in [*schema.inputs, *schema.outputs]]
        assert len(set(ids)) == len(ids)  # ComfyUI wants it so
        taken = inspect.signature(node.execute).parameters
        assert list(taken) == [entry.id for entry in schema.inputs]
        for entry in schema.inputs:
            assert (taken[entry.id].default is None) == entry.optional, entry.id
            if entry.kinds[0] in ("INT", "FLOAT"):
                assert entry.min <= entry.default <= entry.max, entry.id


def example(name):
    api = json.loads((NODES / "example_workflows" / "api" / f"{name}.json").read_text())
    drawn = json.loads((NODES / "example_workflows" / f"{name}.json").read_text())
    return api, drawn


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_name_nodes_and_inputs_that_exist(comfy, name):
    api, _ = example(name)
    assert any(node["class_type"] in IDS for node in api.values())
    kinds = HOSTS_OUTPUTS | {
        id: tuple(output.kind for output in node.define_schema().outputs) for id, node in comfy.nodes.items()
    }
    for node in api.values():
        if node["class_type"] not in IDS:
            assert node["class_type"] in HOSTS_OUTPUTS
            continue
        declared = {entry.id: entry for entry in comfy.nodes[node["class_type"]].define_schema().inputs}
        assert {id for id, entry in declared.items() if not entry.optional} <= set(node["inputs"]) <= set(declared)
        for id, value in node["inputs"].items():
            if isinstance(value, list):
                assert kinds[api[value[0]]["class_type"]][value[1]] in declared[id].kinds, id
            elif declared[id].options:
                assert value in declared[id].options
    files = {path.name for path in (NODES / "example_workflows" / "input").iterdir()}
    named = [value for node in api.values() for value in node["inputs"].values()]
    assert {name for name in named if isinstance(name, str) and name.startswith("omniavatar_")} <= files


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_drawn_is_what_is_sent(comfy, name):
    """The workflow for the canvas and the one for the HTTP API are one graph with the same values."""
    api, drawn = example(name)
    assert {str(node["id"]): node["type"] for node in drawn["nodes"]} == {
        id: node["class_type"] for id, node in api.items()
    }
    links = {link[0]: [str(link[1]), link[2]] for link in drawn["links"]}
    for node in drawn["nodes"]:
        sent = api[str(node["id"])]["inputs"]
        linked = {entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry.get("link") is not None}
        assert linked == {id: value for id, value in sent.items() if isinstance(value, list)}
        if node["type"] in IDS:
            shown = []
            for entry in comfy.nodes[node["type"]].define_schema().inputs:
                if entry.kinds[0] in WIDGETS:
                    value = sent[entry.id]
                    shown += [entry.default if isinstance(value, list) else value]
                    shown += ["fixed"] if entry.has_control else []
            assert node.get("widgets_values", []) == shown
    assert (NODES / "example_workflows" / f"{name}.jpg").stat().st_size < 100_000


def test_a_portrait_talks_in_comfyuis_own_memory_and_progress(comfy):
    management = comfy.management
    model = load(comfy)
    assert management.asked == ["unload"] and not model.dubs
    (speech,) = run(comfy, "Speech", audio=audio())
    assert isinstance(speech, omni.EncodedSpeech)
    (sampling,) = run(comfy, "Sampling", **QUICK)
    assert sampling == QUICK
    given = {"model": model, "image": torch.rand(1, 40, 40, 4), "audio": speech, "silence": 0.0, "sampling": sampling}
    given |= {"height": 64, "width": 48}
    management.interrupted = True
    with pytest.raises(InterruptProcessingException):
        run(comfy, "Talk", **given)
    assert not management.progress
    # Somebody else takes the device; to run, the model is asked back.
    (patcher,) = management.held
    weights = patcher.model.state_dict()
    management.unload_all_models()
    assert {str(weight.device) for weight in patcher.model.parameters()} == {"meta"}
    with pytest.raises(NotImplementedError, match="meta"):
        run(comfy, "Talk", **given)  # back from where nothing is kept
    patcher.model.load_state_dict(weights, assign=True)
    images, sound, fps = run(comfy, "Talk", **given)
    assert management.asked == ["unload", "load", "unload", "load", "load"]
    assert patcher.partially_load(patcher.load_device, 1e32) == 0  # it is there as a whole
    assert images.shape == (15, 64, 48, 3) and images.dtype == torch.float32 and 0 <= images.min() < images.max() <= 1
    assert sound["waveform"].shape == (1, 2, 14400) and sound["sample_rate"] == 24000 and fps == 25.0
    assert [(value, total) for value, total, _ in management.progress] == [(1, 2), (2, 2)]  # two chunks of a step
    assert all(preview[0] == "JPEG" and preview[1].mode == "RGB" for *_, preview in management.progress)


def test_a_face_in_frames_is_dubbed(comfy):
    video = torch.from_numpy(draw_film(1, 10).frames[:5]).float() / 255
    model = load(comfy, "nano-v2v")
    comfy.management.progress.clear()
    given = {"model": model, "video": video, "audio": audio(0.2), "fps": 12.5, "extend": "stop"}
    given |= {"original_audio": audio(0.4, level=0), "keep_audio": "-20dB"}  # silence can be kept, too
    images, sound, fps = run(comfy, "Dub", **given, sampling={**QUICK, "height": 64, "width": 64})
    assert [place[:2] for place in comfy.management.progress] == [(0, 1)] * 5 + [(1, 1)]  # pictures, then a step
    changed = (images - video).abs().amax(dim=(0, 3)) > 1 / 512
    assert images.shape == video.shape and fps == 12.5 and sound["waveform"].shape[-1] == round(5 / 12.5 * 24000)
    assert changed.any() and changed.float().mean() < 0.1


def test_a_face_is_cut_out_and_put_back(comfy):
    video = torch.from_numpy(draw_film(1, 12).frames[:6]).float() / 255
    comfy.management.interrupted = True
    with pytest.raises(InterruptProcessingException):
        run(comfy, "AlignFace", video=video, size=96)
    crops, places = run(comfy, "AlignFace", video=video, size=96)
    assert crops.shape == (6, 96, 96, 3) and 0 <= crops.min() < crops.max() <= 1
    heads, _ = run(comfy, "AlignFace", video=video, size=96, framing="head")
    assert (heads - crops).abs().mean() > 0.01
    (same,) = run(comfy, "PasteFace", video=video, crops=crops, places=places)
    (other,) = run(
        comfy, "PasteFace", video=video - 0.4 / 255, crops=1 - crops, places=places, mask=torch.ones(1, 4, 4).tril()
    )
    assert torch.equal(other[:, :8, :8], video[:, :8, :8])  # far from the face, of the nearest values
    assert (same - video).abs().mean() < 1e-3 < (other - video).abs().mean()


def test_wrong_inputs_are_named(comfy):
    portraits, dubbing = SimpleNamespace(dubs=False), SimpleNamespace(dubs=True)
    picture = torch.rand(1, 40, 40, 3)
    talk = {"model": portraits, "image": picture, "audio": audio()}
    dub = {"model": dubbing, "video": picture.expand(5, -1, -1, -1), "audio": audio()}
    places = omni.FacePlaces(transforms=torch.zeros(1, 2, 3), strengths=torch.ones(1), reasons=(None,), size=(40, 40))
    paste = {"video": picture, "crops": picture, "places": places}
    for name, given, text in (
        ("Talk", talk | {"model": dubbing}, "^model: this one dubs videos"),
        ("Talk", talk | {"image": picture[:0]}, r"^image: pictures of shape \[0, 40, 40, 3\]"),
        ("Talk", talk | {"image": picture.expand(2, -1, -1, -1)}, "^image: 2 pictures, wanted one"),
        ("Talk", talk | {"image": picture[0]}, r"^image: pictures of shape \[40, 40, 3\]"),
        ("Talk", talk | {"image": (255 * picture).byte()}, "^image: pictures of torch.uint8, wanted floats"),
        ("Talk", talk | {"audio": None}, "^audio: no sound"),
        ("Dub", dub | {"fps": float("inf")}, "^video: inf frames a second"),
        ("Talk", talk | {"image": picture / 0}, "^image: pictures with values that are not finite"),
        ("Talk", talk | {"audio": audio(level=0)}, "^audio: the given sound: the sound is silent"),
        ("Talk", talk | {"audio": audio(0.01)}, "^audio: the given sound: the sound lasts 10.0 ms"),
        ("Talk", talk | {"height": 64}, "give both height and width"),
        ("Dub", dub | {"model": portraits}, "^model: this one animates portraits"),
        ("Dub", dub | {"video": picture[:0]}, r"^video: pictures of shape \[0"),
        ("Dub", dub | {"face": "tallest"}, "face is 'tallest', wanted largest"),
        ("Speech", {"audio": audio(level=0)}, "^audio: the given sound: the sound is silent"),
        ("AlignFace", {"video": dub["video"], "face": "0"}, "face is '0', wanted largest"),
        ("PasteFace", paste | {"crops": picture / 0}, "^crops: pictures with values that are not finite"),
        ("PasteFace", paste | {"crops": picture[..., :1]}, r"^crops: pictures of shape \[1, 40, 40, 1\]"),
        ("PasteFace", paste | {"video": picture[:, :20]}, "frames of 40x20 pixels; the crops were cut out of .* 40x40"),
        ("PasteFace", paste | {"mask": torch.rand(2, 40, 40)}, r"^mask: masks of shape \[2, 40, 40\], wanted one"),
        ("PasteFace", paste | {"mask": torch.rand(1, 40, 40) * 255}, "^mask: a mask with values outside 0 to 1"),
        ("PasteFace", paste | {"mask": torch.ones(1, 9, 9, dtype=torch.bool)}, "^mask: all of it is white"),
        ("AlignFace", {"video": dub["video"]}, "^video: the given clip: shows no face in 5 pictures"),
        ("LoRA", {}, "^other is empty"),
        ("LoadModel", {"folder": "absent"}, "absent"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=text):
            run(comfy, name, **given)


def test_loras_make_a_stack(comfy):
    (first,) = run(comfy, "LoRA", file="loras.safetensors", strength=0.5)
    (both,) = run(comfy, "LoRA", other="a/b:c.safetensors", before=first)
    assert both == [(str(comfy.models / "loras" / "loras.safetensors"), 0.5), ("a/b:c.safetensors", 1.0)]
    assert issubclass(omni.EncodedSpeech, omni.Sound)
