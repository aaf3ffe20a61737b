"""`report.html`: what `prepare` kept and rejected, with figures, pictures, and bounds that a person can try."""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...media.timeline import FRAME_RATE
from ...system import pages
from ...system.atomic import write_text_atomically
from ...system.messages import counted
from ..figure_rules import Mode, Rule
from .records import OTHER_REASONS, ClipRecord, SourceRecord

MOST_EMBEDDED = 2**23
"""Bytes of pictures that the page itself may hold; those of larger data sets stay in the folder beside it."""

REPORT = "report.html"
PLACE = Path(__file__).parent


def write_report(out: Path, sources: Sequence[SourceRecord], rules: Sequence[Rule], mode: Mode) -> None:
    """Write report.html of the files and of the clips cut from them.

    The page recomputes which clips are kept when a bound is moved. A reason that is no bound of a figure stays.

    Args:
        out: folder of the data set, in which the clips' pictures lie.
        sources: the files, with their clips.
        rules: with the bounds that clips were judged by.
        mode: "i2v" or "v2v".

    Raises:
        OSError: the page cannot be written.
    """
    write_text_atomically(out / REPORT, _page(out, sources, rules, mode))


def _page(out: Path, sources: Sequence[SourceRecord], rules: Sequence[Rule], mode: Mode) -> str:
    clips = [clip for source in sources for clip in source.clips]
    kept = [clip for clip in clips if clip.is_kept]
    unused = sum(1 for source in sources if source.reasons)
    content = _json(
        {
            "rules": [vars(rule) for rule in rules],
            "clips": _clips(out, clips, rules),
            "sources": [_source(source) for source in sources],
            "others": OTHER_REASONS,
            "unused": Counter(reason for source in sources for reason in source.reasons),
        }
    )
    left_out = f" Of {counted(unused, 'file')} nothing can be used." if unused else ""
    body = f"""<h1>Clips for {html.escape(mode.upper())}</h1>
<p class="result">{len(kept)} of {counted(len(clips), "clip")} are kept, {_minutes(kept)} of {_minutes(clips)} minutes,
from {counted(len(sources), "file")}.{left_out}</p>
<p>Move a slider to see how many clips other bounds would keep. The flags that set them are named in the box: run
<code>prepare</code> again with them. A figure that was not measured breaks no bound. Copies are looked for
among the clips that are kept: one that was rejected may prove to be a copy.</p>
<div class="tried"><button id="reset" type="button" hidden>Reset</button>With these bounds: <b id="count"></b>
<code id="flags"></code></div>
<h2>Figures</h2><p class="legend quiet"><span class="kept">kept</span><span class="breaks">breaks this bound</span>
<span class="others">rejected for another reason</span><span class="bound">bound</span></p>
<div id="figures" class="figures"></div>
<h2>Reasons</h2><div class="wide"><table class="reasons"><tbody id="reasons"></tbody></table></div>
<h2>Clips</h2><div class="filter"><select id="state" aria-label="which clips"><option>all</option><option>kept</option>
<option>rejected</option><option>newly kept</option><option>newly rejected</option></select>
<select id="reason" aria-label="reason"><option value="">any reason</option></select>
<input id="words" type="search" placeholder="name or words" aria-label="name or words">
<span id="found" class="quiet"></span></div>
<div id="clips" class="clips"></div>
<h2>Files</h2><div class="wide"><table class="files"><thead><tr><th>file</th><th>picture</th><th>frames/s</th>
<th>seconds</th><th>scenes</th><th>faces</th><th>speech (s)</th><th>kept</th><th>reason</th></tr></thead>
<tbody id="files"></tbody></table></div>
<script type="application/json" id="report">{content}</script>"""
    style, script = ((PLACE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return pages.page(f"Clips for {mode.upper()}", body, style=style, script=script)


def _clips(out: Path, clips: Sequence[ClipRecord], rules: Sequence[Rule]) -> list[dict[str, Any]]:
    strips = [None if clip.strip is None else out / clip.strip for clip in clips]
    there = [path if path is not None and path.is_file() else None for path in strips]
    is_small = sum(path.stat().st_size for path in there if path is not None) <= MOST_EMBEDDED
    picture = _embedded if is_small else lambda path: _link(path.relative_to(out))
    return [
        _clip(clip, rules) | {"strip": None if path is None else picture(path)}
        for clip, path in zip(clips, there, strict=True)
    ]


def _embedded(path: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _link(path: str | Path) -> str:
    return quote(os.fsencode(path))


def _clip(clip: ClipRecord, rules: Sequence[Rule]) -> dict[str, Any]:
    figures = [clip.figures.get(rule.figure, math.nan) for rule in rules]
    measured = {rule.figure for rule, value in zip(rules, figures, strict=True) if math.isfinite(value)}
    return {
        "name": clip.name,
        "source": clip.source,
        "start": clip.start / FRAME_RATE,
        "seconds": clip.seconds,
        "size": clip.size,
        "figures": [float(f"{value:.6g}") if math.isfinite(value) else None for value in figures],
        "fixed": {reason: text for reason, text in clip.reasons.items() if reason not in measured},
        "video": None if clip.video is None else _link(clip.video),
        "prompt": clip.prompt,
        "split": clip.split,
    }


def _source(source: SourceRecord) -> list[str]:
    """The cells of its line."""
    reason = "; ".join(source.reasons.values())
    kept = f"{sum(clip.is_kept for clip in source.clips)} of {len(source.clips)}"
    if not source.seconds:
        return [source.path, "", "", "", "", "", "", kept, reason]
    numbers = [f"{source.frame_rate:.4g}", f"{source.seconds:.1f}", str(source.scenes), str(source.tracks)]
    size = f"{source.width}x{source.height}"
    return [source.path, size, *numbers, f"{source.speech_seconds:.1f}", kept, reason]


def _minutes(clips: Sequence[ClipRecord]) -> str:
    minutes, seconds = divmod(round(sum(clip.seconds for clip in clips)), 60)
    return f"{minutes}:{seconds:02d}"


def _json(content: Any) -> str:
    """JSON that can stand in a page: no text in it ends the script."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")
