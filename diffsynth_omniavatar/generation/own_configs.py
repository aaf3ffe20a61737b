"""Which of the host's model_configs are OmniAvatar's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..model import checkpoint
from ..model.config import Conventions
from ..model.host_entries import add_full_entry
from ..system.text_files import parse_json, read_text


@dataclass
class OwnConfigs:
    """OmniAvatar's part of the `model_configs`."""

    host_configs: list[Any]
    lora_checkpoint: Any = None
    quantized: Path | list[Path] | None = None
    """A full checkpoint in 8 bits, which the host cannot load."""
    conventions: Conventions | None = None
    wav2vec2: Path | None = None

    @property
    def host_bytes(self) -> int | None:
        """Size of the files of the `host_configs`; None while some are on a hub."""
        if any(config.path is None for config in self.host_configs):
            return None
        return sum(path.stat().st_size for config in self.host_configs for path in _downloaded(config))


def _downloaded(config: Any) -> list[Path]:
    config.download_if_necessary()
    paths = [Path(path) for path in (config.path if isinstance(config.path, list) else [config.path])]
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        raise FileNotFoundError(f"{config} means {missing or 'no file'}, which is not there.")
    return paths


def _is_named(config: Any, word: str) -> bool:
    return config.path is None and config.model_id is not None and word in config.model_id.lower()


def _wav2vec2_folder(paths: list[Path]) -> Path | None:
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    config_file = folder / "config.json"
    if (len(paths) == 1 and not paths[0].is_dir()) or not config_file.is_file():
        return None
    content = parse_json(read_text(config_file), str(config_file))
    return folder if isinstance(content, dict) and content.get("model_type") == "wav2vec2" else None


def sort_configs(model_configs: Iterable[Any]) -> OwnConfigs:
    """Take OmniAvatar's configs out. The others are not touched: downloading them here would pin their path."""
    own = OwnConfigs(host_configs=[])
    for config in model_configs:
        ours = _is_named(config, "omniavatar") or _is_named(config, "wav2vec2")
        if not ours and config.path is None:
            own.host_configs.append(config)
            continue
        paths = _downloaded(config)
        folder = _wav2vec2_folder(paths)
        if folder is not None:
            own.wav2vec2 = folder
        elif not ours and not _holds_omniavatar(paths):
            own.host_configs.append(config)
        elif any(checkpoint.LORA_KEY.match(key) for key in _keys(paths)):
            own.lora_checkpoint = checkpoint.load_checkpoint(_single(paths))
            own.conventions = own.lora_checkpoint.config.conventions
        elif checkpoint.has_scales(_keys(paths)):
            own.quantized = _single(paths)
            own.conventions = checkpoint.read_config(checkpoint.weight_files(own.quantized)).conventions
        else:
            stated = add_full_entry(_single(paths)).conventions
            if own.lora_checkpoint is None:  # otherwise it is the base that the LoRA goes on
                own.conventions = stated
            files = [str(file) for file in checkpoint.weight_files(_single(paths))]
            config.path = files[0] if len(files) == 1 else files
            own.host_configs.append(config)
    return own


def _single(paths: list[Path]) -> Path | list[Path]:
    return paths[0] if len(paths) == 1 else paths


def _holds_omniavatar(paths: list[Path]) -> bool:
    """Whether local files are an OmniAvatar checkpoint; files and folders that it does not understand are the
    host's.
    """
    try:
        return checkpoint.is_omniavatar(_keys(paths))
    except (checkpoint.CheckpointError, FileNotFoundError):
        return False


def _keys(paths: list[Path]) -> list[str]:
    return list(checkpoint.normalise_keys(checkpoint.read_shapes(checkpoint.weight_files(_single(paths)))))


def conventions_among(configs: Iterable[Any]) -> Conventions:
    """Of the full checkpoint that the host recognised by itself among `configs`."""
    for config in configs:
        paths = _downloaded(config)
        if _holds_omniavatar(paths):
            return checkpoint.read_config(checkpoint.weight_files(_single(paths))).conventions
    return Conventions()
