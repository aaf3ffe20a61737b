"""The page that `omniavatar evaluate` writes: clips to sort and filter, their videos side by side, and curves."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ..media.timeline import FRAME_RATE
from ..metrics.clip import ClipFiles
from ..metrics.evaluate import HIGHER_IS_BETTER, LOWER_IS_BETTER, Evaluation
from ..metrics.meanings import MEANINGS
from ..metrics.measure import ClipResult, by_reason

MAIN_FIGURES = ("sync_c", "stable_sync", "openness_heard_r", "ssim", "csim", "sharpness")
"""By the first of these that was measured the page sorts, the worst clip first."""
VIDEOS = "videos"


def page(found: Evaluation, out: Path) -> str:
    """The report as HTML, self-contained but for the videos, which are put into `videos/` beside it.

    Args:
        found: what was measured.
        out: folder of the page.
    """
    _empty_videos(out / VIDEOS)
    figures = list(dict.fromkeys(name for clip in found.clips for name in clip.values))
    known = found.summary()
    measured = [name for name in MAIN_FIGURES if name in known]
    content = {
        "rate": FRAME_RATE,
        "figures": figures,
        "sort": measured[0] if measured else "",
        "lower": sorted(LOWER_IS_BETTER),
        "higher": sorted(HIGHER_IS_BETTER),
        "clips": [_clip(index, clip, out) for index, clip in enumerate(found.clips)],
    }
    # Inside a script element, only "</" could end the text early.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    style, script = (Path(__file__).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js"))
    heads = "".join(
        f'<th data-name="{html.escape(name)}" title="{html.escape(MEANINGS.get(name, ""))}">'
        f'<button type="button">{html.escape(name or "clip")}</button><span></span></th>'
        for name in ("", *figures)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>OmniAvatar: evaluation</title><style>{style}</style></head><body>
<h1>Evaluation</h1>
{_summary(found)}
{_lists(found)}
<h2>Clips</h2>
<div class="control"><label>Name has <input id="words" type="search"></label>
<label>and <select id="figure"></select></label><label>from <input id="low" type="number" step="any"></label>
<label>to <input id="high" type="number" step="any"></label><span id="count"></span></div>
<div class="wide"><table id="clips"><thead><tr>{heads}</tr></thead><tbody></tbody></table></div>
<h2 id="name"></h2><p class="missing" id="lacks"></p>
<div class="videos" id="videos"></div>
<div class="control"><button id="play" type="button">Play</button>
<input id="place" type="range" min="0" max="1" step="any" value="0" aria-label="place in the videos">
<label><input id="sound" type="checkbox" checked> sound</label>
<label>Curve <select id="curve"></select></label></div>
<canvas id="plot" aria-label="the chosen figure over time"></canvas>
<h2>Protocol</h2><div class="wide"><table id="protocol"><tbody>{_protocol(found)}</tbody></table></div>
<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>
"""


def _clip(index: int, clip: ClipResult, out: Path) -> dict[str, Any]:
    videos = [("generated", clip.files.generated)]
    if clip.files.reference is not None:
        videos.append(("reference", clip.files.reference))
    return {
        "name": clip.files.name,
        "values": {name: _number(value) for name, value in clip.values.items()},
        "curves": {name: [_number(value) for value in curve] for name, curve in clip.curves.items()},
        "missing": [f"{', '.join(names)} ({why})" for why, names in by_reason(clip.missing).items()],
        "videos": [(title, _beside(out, f"{index:04d}_{title}", path)) for title, path in videos],
    }


def check_videos_folder(clips: Sequence[ClipFiles], out: Path) -> None:
    """Raise ValueError if a clip lies where the page in `out` has its own videos, which are removed."""
    folder = (out / VIDEOS).resolve()
    for path in (path for clip in clips for path in (clip.generated, clip.reference) if path is not None):
        if path.resolve().parent == folder:
            raise ValueError(f"{path} lies where the report has its videos; give another folder with --out")


def _empty_videos(folder: Path) -> None:
    """Remove what another evaluation has put there."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if re.fullmatch(r"\d{4,}_(generated|reference)\..*", path.name):
            path.unlink()


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _beside(out: Path, name: str, video: Path) -> str:
    """The video's place relative to the page: linked or copied, so that the folder may be moved."""
    target = out / VIDEOS / f"{name}{video.suffix}"
    target.unlink(missing_ok=True)
    try:
        os.link(video, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(video, target)
    return f"{VIDEOS}/{quote(target.name)}"


def _summary(found: Evaluation) -> str:
    rows = []
    for name, row in found.summary().items():
        arrow = "lower" if name in LOWER_IS_BETTER else "higher" if name in HIGHER_IS_BETTER else ""
        worst = _text(row["worst"]) if "worst" in row else ""
        clip = str(row.get("worst_clip", "")) if len(found.clips) > 1 else ""
        rows.append((name, _text(row["mean"]), _text(row["median"]), worst, arrow, MEANINGS.get(name, ""), clip))
    rows += [(name, _text(value), "", "", "lower", MEANINGS.get(name, ""), "") for name, value in found.values.items()]
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(
        f"<th>{name}</th>" for name in ("figure", "mean", "median", "worst", "better is", "what it is", "worst clip")
    )
    return f'<div class="wide"><table id="summary"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _lists(found: Evaluation) -> str:
    texts = [f"{name} is missing: {why}" for name, why in found.missing.items()]
    texts += [f"{name} failed: {why}" for name, why in found.failed.items()]
    texts += found.warnings
    return f'<ul class="missing">{"".join(f"<li>{html.escape(text)}</li>" for text in texts)}</ul>' if texts else ""


def _protocol(found: Evaluation) -> str:
    return "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value or 'none'))}</td></tr>"
        for name, value in found.protocol.items()
    )


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{np.float64(value):.4g}"
