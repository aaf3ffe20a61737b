"""Tokenizers of the small families, in the format of the host's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes."""
    vocabulary = {"<pad>": 0, **{chr(code): code + 1 for code in range(256)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    _save_tokenizer(tokenizer, folder, unk_token="<pad>")


def write_word_tokenizer(folder: Path, prompts: Iterable[str], size: int) -> None:
    """A byte-level BPE tokenizer of at most `size` tokens, learned from `prompts`; other words fall into pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(prompts, trainer)
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    _save_tokenizer(tokenizer, folder, eos_token="</s>", add_prefix_space=True)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, **settings: Any) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **settings).save_pretrained(folder)
    # transformers 5 writes a class name there that transformers 4 does not know; both know this one. transformers 4
    # puts no space before the first word, whatever tokenizer.json says, unless the settings ask for it.
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config_file.write_text(
        json.dumps({**config, **settings, "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8"
    )
