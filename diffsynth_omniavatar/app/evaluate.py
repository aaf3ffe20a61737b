"""`omniavatar evaluate`: figures of videos, of two runs compared, or of the small model.

omniavatar evaluate talk.mp4 --reference real.mp4 --out evaluation
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..metrics.compare import Difference, paired_difference
from ..metrics.evaluate import SET_GROUPS, ClipResult, Evaluation, check_groups, evaluate, measured_rows
from ..metrics.groups import GROUPS
from ..metrics.networks import Networks
from ..nano import evaluate as nano
from ..system.atomic import write_text_atomically
from ..system.messages import counted
from ..system.output_folder import check_output_folder
from ..system.text_files import parse_json, read_text
from .console import FAILED, say
from .evaluate_page import page
from .evaluate_pairs import pair_clips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar evaluate`."""
    add = parser.add_argument
    add("generated", nargs="*", metavar="GENERATED", help="videos, folders of videos, or a CSV that pairs files")
    add("--reference", nargs="+", default=[], metavar="REF", help="real videos: one for each, one for all, or a folder")
    add("--audio", nargs="+", default=[], metavar="AUDIO", help="speech, likewise (default: the sound of each video)")
    add("--compare", nargs=2, metavar=("A", "B"), help="compare two folders that --out wrote: paired differences B - A")
    add("--out", default="evaluation", help="folder for figures.json, clips.csv and report.html (default: evaluation)")
    groups = "; ".join(f"{name}: {group.about}" for name, group in GROUPS.items())
    sets = "; ".join(f"{name}: {about}" for name, about in SET_GROUPS.items())
    add(
        "--figures",
        default="",
        help=f"what to measure, comma-separated (default: all that can be had). {groups}; {sets}. "
        f"With --nano: {','.join(nano.GROUPS)}",
    )
    add("--device", help="cuda, cpu, ... (default: the GPU if there is one)")
    weights = parser.add_argument_group("weights", "Figures without their weights are listed as missing.")
    weights.add_argument("--syncnet_path", help="syncnet_v2.model, for sync")
    weights.add_argument("--stable_syncnet_path", help="stable_syncnet.pt of LatentSync, for stable_sync")
    weights.add_argument("--vgg_path", help="torchvision's vgg16-397923af.pth, for lpips")
    weights.add_argument(
        "--inception_path", help="weights-inception-2015-12-05-6726825d.pth of torch-fidelity, for fid"
    )
    weights.add_argument("--fvd_path", help="i3d_pretrained_400.pt of cd-fvd, for fvd")
    small = parser.add_argument_group("the small model")
    small.add_argument(
        "--nano", action="store_true", help="measure the small model on drawn people, whose true mouths are known"
    )
    nano.add_arguments(small)


def run(args: argparse.Namespace) -> int:
    """`omniavatar evaluate`; the exit code is 1 if a clip failed, or with --nano if a goal is missed.

    Raises:
        ValueError: flags that do not go together, or files that cannot be used.
    """
    given = [bool(args.generated), args.nano, args.compare is not None]
    if sum(given) != 1:
        raise ValueError("give videos to measure, or --compare A B, or --nano")
    check_output_folder(args.out)
    if args.nano:
        return nano.run(args)
    if args.compare:
        return _compare(Path(args.compare[0]), Path(args.compare[1]), Path(args.out))
    clips = pair_clips(args.generated, args.reference, args.audio)
    groups = check_groups([name.strip() for name in args.figures.split(",") if name.strip()])
    networks = Networks(
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        syncnet_path=args.syncnet_path,
        stable_syncnet_path=args.stable_syncnet_path,
        vgg_path=args.vgg_path,
        inception_path=args.inception_path,
        fvd_path=args.fvd_path,
    )

    def tell(place: int, result: ClipResult | None) -> None:
        say(f"clip {place + 1} of {len(clips)}: {clips[place].name}{'' if result else ' failed'}")

    found = evaluate(clips, groups, networks, on_clip=tell)
    write_results(found, Path(args.out))
    print_table(found)
    return FAILED if found.failed else 0


def write_results(found: Evaluation, out: Path) -> None:
    """Write figures.json, clips.csv and report.html."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "protocol": found.protocol,
        "summary": found.summary() | {name: {"value": value} for name, value in found.values.items()},
        "missing": found.missing,
        "failed": found.failed,
        "clips": [_clip_record(clip) for clip in found.clips],
    }
    write_text_atomically(out / "figures.json", json.dumps(_plain(content), indent=1, ensure_ascii=False))
    write_text_atomically(out / "clips.csv", _csv(found))
    write_text_atomically(out / "report.html", page(found, out))


def _clip_record(clip: ClipResult) -> dict[str, Any]:
    files = {name: str(path) for name, path in vars(clip.files).items() if path is not None}
    return {"files": files, "values": clip.values, "missing": clip.missing}


def _plain(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(found: Evaluation) -> str:
    rows = list(measured_rows(found))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def print_table(found: Evaluation) -> None:
    """The summary on stdout: mean, median and worst clip of each figure."""
    print(f"{'figure':<24}{'mean':>11}{'median':>11}{'worst':>11}  clips")
    for name, row in found.summary().items():
        worst = f"{row['worst']:11.4g}" if "worst" in row else " " * 11
        which = f"  worst: {row['worst_clip']}" if "worst" in row and len(found.clips) > 1 else ""
        print(f"{name:<24}{row['mean']:11.4g}{row['median']:11.4g}{worst}  {row['clips']}{which}")
    for name, value in found.values.items():
        print(f"{name:<24}{value:11.4g}")
    for name, why in found.missing.items():
        print(f"{name:<24}missing: {why}")
    for name, why in found.failed.items():
        print(f"failed: {name}: {why}")


def _compare(a: Path, b: Path, out: Path) -> int:
    first, second = (_figures(folder) for folder in (a, b))
    names = list(dict.fromkeys(name for values in first.values() for name in values))
    found: dict[str, Difference] = {}
    for name in names:
        one, other = (
            {clip: values[name] for clip, values in run.items() if values.get(name) is not None}
            for run in (first, second)
        )
        difference = paired_difference(one, other)
        if difference is not None:
            found[name] = difference
    if not found:
        raise ValueError(f"{a} and {b} have no clip of the same name with a figure in common")
    print(f"{'figure':<24}{'A':>11}{'B':>11}{'B - A':>11}   95 % interval")
    for name, row in found.items():
        mark = " *" if row.is_clear else ""
        print(
            f"{name:<24}{row.mean_a:11.4g}{row.mean_b:11.4g}{row.difference:11.4g}   "
            f"{row.low:.4g} to {row.high:.4g}{mark}"
        )
    print(f"{counted(max(row.clips for row in found.values()), 'clip')}. *: the interval leaves out 0.")
    out.mkdir(parents=True, exist_ok=True)
    content = {"a": str(a), "b": str(b), "differences": {name: vars(row) for name, row in found.items()}}
    write_text_atomically(out / "compare.json", json.dumps(_plain(content), indent=1))
    return 0


def _figures(folder: Path) -> dict[str, dict[str, float]]:
    """Figures by the name of the video's file, out of a folder that `write_results` wrote."""
    path = folder / "figures.json" if folder.is_dir() else folder
    if not path.is_file():
        raise ValueError(f"{folder} has no figures.json: give a folder that `omniavatar evaluate --out` wrote")
    content = parse_json(read_text(path), str(path))
    try:
        clips = {Path(clip["files"]["generated"]).name: clip["values"] for clip in content["clips"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of `omniavatar evaluate`: {error} is missing") from error
    return clips
