"""The part of the tab Compare that shows results of `omniavatar evaluate`, of one run or of two against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from ...system.messages import counted
from .faults import FieldFaults
from .forms import QUIETLY, Form
from .markup import plain
from .player import lay_out_player, player
from .state import PageApp

SUMMARY_WIDTHS = ["190px", "90px", "90px", "90px", "100px", "520px"]
COMPARISON_WIDTHS = ["190px", "90px", "90px", "100px", "220px", "190px"]


class EvaluationPanel:
    """The form, tables, and a clip's videos side by side.

    Args:
        app: the page.
    """

    def __init__(self, app: PageApp) -> None:
        self._app = app
        self._form = Form()
        with gr.Row(equal_height=False):
            for name, label in (("a", "Evaluation A"), ("b", "Evaluation B, to compare with")):
                with gr.Column(min_width=300, elem_classes="field"):
                    self._form.field(
                        name,
                        gr.Dropdown(
                            [],
                            label=label,
                            info="A folder that `omniavatar evaluate --out` wrote, in the folders of --data.",
                            allow_custom_value=True,
                            elem_id=f"compare-evaluation-{name}",
                        ),
                    )
        self._open = gr.Button("Open", variant="primary", elem_id="compare-open")
        self._form.general_message()
        self._notes = gr.HTML("", visible=False, elem_classes="facts")
        self._summary = gr.Dataframe(
            visible=False,
            interactive=False,
            datatype="str",
            wrap=True,
            label="Figures",
            elem_id="compare-summary",
            buttons=[],
        )
        self._curves = gr.HTML("", visible=False, elem_id="compare-curves")
        self._clip = gr.Dropdown(
            [], label="Clip", visible=False, interactive=True, filterable=True, elem_id="compare-clip"
        )
        self._clip.preprocess = lambda name: name  # which clips there are is read again
        self._player = lay_out_player("compare-clip-player")
        self._clips = gr.Dataframe(
            visible=False, interactive=False, datatype="str", label="Clips", elem_id="compare-clips", buttons=[]
        )
        self._outputs = [self._notes, self._summary, self._curves, self._clip, self._player, self._clips]

    def connect(self, tab: Any) -> None:
        """React to what is chosen, and to the tab that is opened."""
        fields = self._form.inputs
        Context.root_block.load(self._offer, None, fields, **QUIETLY)
        tab.select(self._offer, None, fields, **QUIETLY)
        self._open.click(
            self._opened,
            fields,
            [*self._form.messages, *self._outputs],
            show_progress="minimal",
            api_visibility="private",
        )
        self._clip.change(self._play, [*fields, self._clip], [self._player], **QUIETLY)

    def _offer(self) -> list[Any]:
        from .evaluations import evaluations

        offered = evaluations(self._app.readable)
        return [gr.update(choices=offered), gr.update(choices=offered)]

    def _folders(self, a: str | None, b: str | None) -> list[Path]:
        """The folders that are named, one or two; raises FieldFaults."""
        from .evaluations import evaluation_folder

        found, faults = list[Path](), dict[str, str]()
        for name, text in (("a", a), ("b", b)):
            if name == "b" and not (text or "").strip():
                continue
            try:
                found.append(evaluation_folder(self._app.readable.path(str(text or ""))))
            except (ValueError, OSError) as error:
                faults[name] = str(error)[:1].upper() + str(error)[1:]
        if faults:
            raise FieldFaults(faults)
        return found

    def _opened(self, a: str | None, b: str | None) -> list[Any]:
        try:
            folders = self._folders(a, b)
            shown = self._one(folders[0]) if len(folders) == 1 else self._two(*folders)
        except FieldFaults as error:
            return [*self._form.told(error), *[gr.update(visible=False)] * len(self._outputs)]
        except (ValueError, OSError) as error:
            fault = FieldFaults({"": str(error)})
            return [*self._form.told(fault), *[gr.update(visible=False)] * len(self._outputs)]
        return [*self._form.told(None), *shown]

    def _one(self, folder: Path) -> list[Any]:
        from .evaluations import SUMMARY_HEAD, read_tables

        found = read_tables(folder)
        notes = "".join(f"<li>{plain(note)}</li>" for note in found.notes)
        names = [(row[0], str(index)) for index, row in enumerate(found.clips)]
        return [
            gr.update(value=f"<ul>{notes}</ul>", visible=bool(notes)),
            _table(SUMMARY_HEAD, found.summary, SUMMARY_WIDTHS),
            gr.update(value="".join(found.curves), visible=bool(found.curves)),
            gr.update(choices=names, value="0" if names else None, visible=bool(names)),
            self._play(str(folder), None, "0"),
            _table(["clip", *found.figures], found.clips),
        ]

    def _two(self, a: Path, b: Path) -> list[Any]:
        from ..evaluate_compare import read_comparison
        from .evaluations import COMPARISON_HEAD, common_clips, comparison_rows

        compared = read_comparison(a, b)
        names = common_clips(compared)
        lone = len(compared.first.clips) + len(compared.second.clips) - 2 * len(names)
        note = f"{counted(len(names), 'clip')} in both" + (f", {lone} in one alone." if lone else ".")
        return [
            gr.update(value=f"<p>{plain(note)} B - A of each clip, with the mean's 95 % interval.</p>", visible=True),
            _table(COMPARISON_HEAD, comparison_rows(compared), COMPARISON_WIDTHS),
            gr.update(visible=False),
            gr.update(choices=[(name, name) for name in names], value=names[0], visible=True),
            self._play(str(a), str(b), names[0]),
            gr.update(visible=False),
        ]

    def _play(self, a: str | None, b: str | None, clip: str | None) -> Any:
        """The videos of a clip: what was generated and its reference, or what A and B generated."""
        from ..evaluate_compare import read_run
        from .evaluations import videos_of

        try:
            folders = self._folders(a, b)
            if len(folders) == 1:
                videos = videos_of(folders[0], int(clip or "0"))
            else:
                places = [list(read_run(folder).clips).index(clip or "") for folder in folders]
                found = [videos_of(folder, place) for folder, place in zip(folders, places, strict=True)]
                videos = [
                    (f"{letter}: {folder.name}", one[0][1])
                    for letter, folder, one in zip("AB", folders, found, strict=True)
                    if one
                ]
        except (ValueError, OSError):
            videos = []
        videos = [(title, path) for title, path in videos if self._app.readable.holds(path)]  # not what a link leads to
        return gr.update(value=player(videos, self._app.uploads) if videos else "", visible=bool(videos))


def _table(head: list[str], rows: list[list[str]], widths: list[str] | None = None) -> Any:
    value = {"headers": head, "data": rows}
    return gr.update(value=value, visible=bool(rows), column_widths=widths or ["150px"] * len(head))
