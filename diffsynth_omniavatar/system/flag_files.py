"""YAML and JSON files that give values to flags of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .text_files import parse_json, read_text, refuse_repeated

LARGEST = 2**20
"""Bytes; a file of all flags has some thousand."""


class _Loader(yaml.SafeLoader):
    """YAML without aliases, by which a short file can stand for any amount of data, and with each key once."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node of the document."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"an alias, *{event.anchor}", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """The dict of a mapping."""
        refuse_repeated(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return super().construct_mapping(node, deep)


def read_flag_file(path: str | Path) -> dict[Any, Any]:
    """Flag names and values.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is not valid YAML (.json: JSON), has aliases or a key twice, is larger than 1 MiB, or holds
            anything but names and values; the message begins with its path, and tells the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file.")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than a file of flags can have.")
    text = read_text(path)
    content = parse_json(text, str(path)) if path.suffix == ".json" else _parse_yaml(text, path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, wanted lines like `steps: 25`.")
    return content


def _parse_yaml(text: str, path: Path) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ValueError(f"{path} is not valid YAML: nested too deep.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
