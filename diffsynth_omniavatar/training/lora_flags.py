"""The flags of a new LoRA: their help, and which of them go together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

KINDS = ("lora", "rslora", "dora", "lokr", "loha")
BLOCK_FLAGS = ("compile", "stream_weights", "quantize", "quant_options", "enable_model_cpu_offload")
"""Flags whose way to compute or to hold a layer knows plain LoRAs alone."""


def rank_pattern(text: str) -> list[tuple[str, int]]:
    """ "ffn=64,self_attn.q=32" -> [("ffn", 64), ("self_attn.q", 32)]; ValueError for another text."""
    found = []
    for part in filter(None, text.split(",")):
        name, _, rank = part.partition("=")
        if not name or not rank.isdecimal() or int(rank) < 1:
            raise ValueError(f"is {text!r}, wanted NAME=RANK with commas between, like ffn=64,self_attn.q=32")
        found.append((name, int(rank)))
    return found


def add_lora_flags(group: Any) -> None:
    """All of them."""
    add = group.add_argument
    add(
        "--lora_alpha",
        type=float,
        help="Alpha of a new LoRA; its scale is alpha / rank, of an rsLoRA alpha / sqrt(rank). (default: half of "
        "--lora_rank)",
    )
    add(
        "--lora_kind",
        choices=KINDS,
        default="lora",
        help="How a new LoRA changes the weights; dora, lokr and loha train with DiffSynth's own blocks only.",
    )
    add(
        "--lora_rank_pattern",
        default="",
        metavar="NAME=RANK,...",
        help="Other ranks for layers whose name has this part, like ffn=64,self_attn.q=32; the last that fits counts. "
        "(default: --lora_rank for all)",
    )
    add(
        "--lr_audio",
        type=float,
        metavar="RATE",
        help="Learning rate of the audio modules. (default: --learning_rate)",
    )


def lora_faults(args: argparse.Namespace) -> Iterator[str]:
    """Of flags that do not go together, and values out of their range."""
    if args.lora_alpha is not None and not 0 < args.lora_alpha < math.inf:
        yield f"--lora_alpha is {args.lora_alpha}, wanted more than 0"
    if args.lr_audio is not None and not 0 <= args.lr_audio < math.inf:
        yield f"--lr_audio is {args.lr_audio}, wanted at least 0"
    try:
        pattern = rank_pattern(args.lora_rank_pattern)
    except ValueError as error:
        yield f"--lora_rank_pattern {error}"
        return
    if args.trainable_models == "dit" and (pattern or args.lora_kind != "lora"):
        yield "--lora_kind and --lora_rank_pattern are of a LoRA: leave --trainable_models dit away, or them"
    if args.lora_kind == "rslora" and args.lora_alpha is None:
        yield "--lora_kind rslora needs --lora_alpha: its scale is alpha / sqrt(rank), for which half the rank is much"
    if args.lora_kind in ("lora", "rslora") or args.reference:
        return
    flags = [name for name in BLOCK_FLAGS if getattr(args, name, None)]
    flags += [] if args.activation_memory is None else ["activation_memory"]
    for flag in flags:
        yield f"--{flag} knows plain LoRAs: leave it out, or --lora_kind {args.lora_kind}"
    if args.lora_kind == "dora" and args.base_lora:
        yield "--lora_kind dora does not go with --base_lora: a DoRA depends on the whole weights"
