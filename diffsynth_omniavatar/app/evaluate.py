"""`omniavatar evaluate`: figures of videos, of two runs compared, of a run's checkpoints, or of the small model.

omniavatar evaluate talk.mp4 --reference real.mp4 --out evaluation
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..generation.loading import choose_device
from ..metrics.clip import ClipFiles
from ..metrics.evaluate import Evaluation, check_groups, evaluate, measured_rows
from ..metrics.groups import GROUPS
from ..metrics.measure import ClipResult, by_reason
from ..metrics.networks import Networks
from ..metrics.together import SET_GROUPS
from ..nano import evaluate as nano
from ..nano.figures import GROUPS as NANO_GROUPS
from ..system.atomic import write_text_atomically
from ..system.messages import counted
from ..system.output_folder import check_output_folder, reserved
from .console import FAILED, say
from .evaluate_compare import FIGURES_FILE, compare
from .evaluate_page import check_videos_folder, page
from .evaluate_pairs import pair_clips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar evaluate`."""
    add = parser.add_argument
    add(
        "generated",
        nargs="*",
        metavar="GENERATED",
        help="videos, folders of videos, or a CSV with the columns generated, reference, audio and portrait",
    )
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
        f"With --nano: {','.join(NANO_GROUPS)}",
    )
    add("--device", help="cuda, cpu, ... (default: the GPU if there is one)")
    add("--workers", type=int, default=1, help="processes that measure clips side by side (default: 1)")
    weights = parser.add_argument_group("weights", "Figures without their weights are listed as missing.")
    weights.add_argument("--syncnet_path", help="syncnet_v2.model, for sync")
    weights.add_argument("--stable_syncnet_path", help="stable_syncnet.pt of LatentSync, for stable_sync")
    weights.add_argument("--vgg_path", help="torchvision's vgg16-397923af.pth, for lpips")
    weights.add_argument(
        "--inception_path", help="weights-inception-2015-12-05-6726825d.pth of torch-fidelity, for fid"
    )
    weights.add_argument("--fvd_path", help="i3d_pretrained_400.pt of cd-fvd, for fvd")
    weights.add_argument("--videomae_path", help="vit_g_hybrid_pt_1200e_ssv2_ft.pth, for fvd_videomae")
    steps = parser.add_argument_group("checkpoints of a run")
    steps.add_argument(
        "--checkpoints", metavar="RUN", help="measure every step-N in the --output_path of a training run"
    )
    steps.add_argument("--validation_data", help="lines prompt@@image@@audio, as in training (default: the run's)")
    steps.add_argument("--validation_loss_data", help="held-out clips, a table or cache (default: the run's)")
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
    given = [bool(args.generated), args.nano, args.compare is not None, args.checkpoints is not None]
    if sum(given) != 1:
        raise ValueError("give videos to measure, or --compare A B, or --checkpoints RUN, or --nano")
    if not args.generated and (args.reference or args.audio):
        raise ValueError("--reference and --audio belong to videos that are measured, not to --compare or --nano")
    if args.workers < 1:
        raise ValueError(f"--workers is {args.workers}, wanted 1 or more")
    if args.workers > 1 and not args.generated:
        raise ValueError("--workers belongs to videos that are measured")
    if args.checkpoints is None and (args.validation_data or args.validation_loss_data):
        raise ValueError("--validation_data and --validation_loss_data belong to --checkpoints RUN")
    check_output_folder(args.out)
    if args.checkpoints is not None:
        from . import evaluate_checkpoints  # which imports all of training

        return evaluate_checkpoints.run(args, _networks(args))
    if args.nano:
        return nano.run(args)
    if args.compare:
        compare(Path(args.compare[0]), Path(args.compare[1]), Path(args.out))
        return 0
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    clips = pair_clips(args.generated, args.reference, args.audio)
    check_videos_folder(clips, Path(args.out))
    groups = check_groups([name.strip() for name in args.figures.split(",") if name.strip()])
    networks = _networks(args)
    with reserved(Path(args.out)):
        found = _measure_all(clips, groups, networks, args.workers, Path(args.out))
        write_results(found, Path(args.out))
    print_table(found)
    return FAILED if found.failed else 0


def _networks(args: argparse.Namespace) -> Networks:
    """The weights that the flags name."""
    return Networks(
        device=choose_device(args.device),
        syncnet_path=args.syncnet_path,
        stable_syncnet_path=args.stable_syncnet_path,
        vgg_path=args.vgg_path,
        inception_path=args.inception_path,
        fvd_path=args.fvd_path,
        videomae_path=args.videomae_path,
    )


def _measure_all(
    clips: Sequence[ClipFiles], groups: Sequence[str], networks: Networks, workers: int, out: Path
) -> Evaluation:
    """`evaluate`, told of clip by clip. After Ctrl-C what was measured is written before the command ends."""
    done: list[ClipResult] = []
    failed: dict[str, str] = {}
    start = time.monotonic()

    def tell(place: int, result: ClipResult | str) -> None:
        ended = f"failed: {result}" if isinstance(result, str) else f"done, {time.monotonic() - start:.1f} s in all"
        say(f"clip {place + 1} of {len(clips)}, {clips[place].name}: {ended}")
        if isinstance(result, str):
            failed[clips[place].name] = result
        else:
            done.append(result)

    try:
        return evaluate(clips, groups, networks, workers=workers, on_clip=tell)
    except KeyboardInterrupt:
        if done:
            finished = failed | {result.files.name: "" for result in done}
            rest = {clip.name: "not measured: interrupted" for clip in clips if clip.name not in finished}
            write_results(Evaluation(clips=done, failed=failed | rest), out)
            say(f"{counted(len(done), 'measured clip')} of {len(clips)} written to {out}")
        raise


def write_results(found: Evaluation, out: Path) -> None:
    """Write figures.json, clips.csv and report.html."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "protocol": found.protocol,
        "summary": found.summary() | {name: {"value": value} for name, value in found.values.items()},
        "missing": found.missing,
        "failed": found.failed,
        "warnings": list(found.warnings),
        "clips": [_clip_record(clip) for clip in found.clips],
    }
    write_text_atomically(out / FIGURES_FILE, json.dumps(_plain(content), indent=1, ensure_ascii=False))
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
    lacking: dict[str, dict[str, int]] = {}
    for clip in found.clips:
        for why, names in by_reason(clip.missing).items():
            counts = lacking.setdefault(why, {})
            for name in names:
                counts[name] = counts.get(name, 0) + 1
    for why, counts in lacking.items():
        for count in dict.fromkeys(counts.values()):
            which = ", ".join(name for name in counts if counts[name] == count)
            print(f"not in {count} of {counted(len(found.clips), 'clip')}: {which}: {why}")
    for name, why in found.failed.items():
        print(f"failed: {name}: {why}")
    for warning in found.warnings:
        print(f"warning: {warning}")
