"""A small ComfyUI: as much of its node interface, progress and model management as the nodes of integrations/ use.

Inputs take the keywords that ComfyUI's own take, so a misspelled one is an error here too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

NODES = Path(__file__).resolve().parents[1] / "integrations" / "comfyui"
_COMMON = {"display_name", "optional", "tooltip"}
_WIDGET = {*_COMMON, "default"}
_NUMBER = {*_WIDGET, "min", "max", "step"}
KEYWORDS = {
    "IMAGE": _COMMON,
    "AUDIO": _COMMON,
    "MASK": _COMMON,
    "BOOLEAN": _WIDGET,
    "INT": {*_NUMBER, "control_after_generate"},
    "FLOAT": _NUMBER,
    "STRING": {*_WIDGET, "multiline"},
    "COMBO": {*_WIDGET, "options"},
}
"""Keywords of an input by its kind; inputs of nodes' own kinds take the common ones."""
WIDGETS = ("BOOLEAN", "INT", "FLOAT", "STRING", "COMBO")
"""Kinds that are given in the node where nothing is linked."""


class InterruptProcessingException(Exception):
    """What ComfyUI raises where somebody has pressed its cross."""


class Input:
    def __init__(self, kind: str, id: str, **given: Any) -> None:
        wrong = set(given) - KEYWORDS.get(kind, _COMMON)
        if wrong:
            raise TypeError(f"{kind}.Input {id} got {wrong}")
        self.kinds, self.id, self.optional = kind.split(","), id, given.get("optional", False)
        self.options, self.default = given.get("options"), given.get("default")
        self.min, self.max = given.get("min"), given.get("max")
        self.has_control = given.get("control_after_generate", False)


class Output:
    def __init__(self, kind: str, id: str, display_name: str | None = None) -> None:
        self.kind, self.id, self.name = kind, id, display_name or kind


def _kind(name: str) -> Any:
    def make_input(id: str, **given: Any) -> Input:
        return Input(name, id, **given)

    def make_output(id: str, **given: Any) -> Output:
        return Output(name, id, **given)

    return SimpleNamespace(io_type=name, Input=make_input, Output=make_output)


def _several(id: str, types: list[Any], **given: Any) -> Input:
    return Input(",".join(kind.io_type for kind in types), id, **given)


class Schema:
    def __init__(self, *, node_id: str, display_name: str, category: str, description: str, inputs: list[Input],
                 outputs: list[Output]) -> None:  # fmt: skip
        self.node_id, self.display_name, self.category, self.description = node_id, display_name, category, description
        self.inputs, self.outputs = inputs, outputs


class ComfyNode:
    """A node; ComfyUI calls its class methods `define_schema` and `execute`."""


class ModelPatcher:
    """What ComfyUI's management moves."""

    def __init__(self, model: Any, load_device: torch.device, offload_device: torch.device, size: int) -> None:
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size

    def detach(self) -> None:
        self.unpatch_model(self.offload_device)


class Management:
    """Who has the device, and what was asked."""

    def __init__(self) -> None:
        self.held: list[ModelPatcher] = []
        self.asked: list[str] = []
        self.interrupted = False
        self.progress: list[tuple[int, int, Any]] = []

    def load_models_gpu(self, models: list[ModelPatcher], memory_required: float = 0) -> None:
        self.asked.append("load")
        for patcher in models:
            patcher.partially_load(patcher.load_device, 1e32)
            if patcher not in self.held:
                self.held.append(patcher)

    def unload_all_models(self) -> None:
        self.asked.append("unload")
        for patcher in self.held:
            assert patcher.partially_unload(patcher.offload_device, 1) == 0
            patcher.detach()
        self.held.clear()

    def free_memory(self, memory: float, device: torch.device) -> None:
        self.asked.append("free")

    def throw_if_interrupted(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise InterruptProcessingException


def modules(management: Management, models_dir: Path) -> dict[str, ModuleType]:
    """ComfyUI's modules by their names."""

    class ProgressBar:
        def __init__(self, total: int) -> None:
            pass

        def update_absolute(self, value: int, total: int, preview: Any) -> None:
            management.progress.append((value, total, preview))

    class NodeOutput:
        def __init__(self, *values: Any) -> None:
            self.values = values

    names = ("Image", "Audio", "Mask", "Boolean", "Int", "Float", "String", "Combo")
    io = SimpleNamespace(
        Schema=Schema,
        ComfyNode=ComfyNode,
        NodeOutput=NodeOutput,
        Custom=_kind,
        MultiType=SimpleNamespace(Input=_several),
        **{name: _kind(name.upper()) for name in names},
    )
    contents = {
        "comfy_api": {},
        "comfy_api.latest": {"io": io, "ComfyExtension": type("ComfyExtension", (), {})},
        "comfy": {},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
        "comfy.model_management": {
            "get_torch_device": lambda: torch.device("cpu"),
            "unet_offload_device": lambda: torch.device("meta"),  # so that a test sees what was moved
            "load_models_gpu": management.load_models_gpu,
            "unload_all_models": management.unload_all_models,
            "soft_empty_cache": lambda: None,
            "free_memory": management.free_memory,
            "throw_exception_if_processing_interrupted": management.throw_if_interrupted,
        },
        "folder_paths": {
            "models_dir": str(models_dir),
            "get_filename_list": lambda kind: [f"{kind}.safetensors"],
            "get_full_path_or_raise": lambda kind, name: str(models_dir / kind / name),
        },
    }
    made = {name: ModuleType(name) for name in contents}
    for name, content in contents.items():
        vars(made[name]).update(content)
        above, _, own = name.rpartition(".")
        if above:
            setattr(made[above], own, made[name])
    return made


@contextlib.contextmanager
def loaded_nodes(management: Management, models_dir: Path) -> Iterator[dict[str, Any]]:
    """The nodes by their ids, loaded as ComfyUI does it: the folder as a module of any name, then its entry point."""
    before = dict(sys.modules)
    sys.modules.update(modules(management, models_dir))
    try:
        spec = importlib.util.spec_from_file_location(
            "some_name", NODES / "__init__.py", submodule_search_locations=[str(NODES)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["some_name"] = module
        spec.loader.exec_module(module)
        nodes = _finished(_finished(module.comfy_entrypoint()).get_node_list())
        yield {node.define_schema().node_id: node for node in nodes}
    finally:
        added = [name for name in sys.modules if name.partition(".")[0] in ("some_name", "comfy", "comfy_api")]
        for name in [*added, "folder_paths"]:
            sys.modules.pop(name, None)
        sys.modules.update({name: before[name] for name in before if name not in sys.modules})


def _finished(coroutine: types.CoroutineType[Any, Any, Any]) -> Any:
    assert inspect.iscoroutine(coroutine)
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")
