"""Plots are drawings that a browser reads."""

from xml.etree import ElementTree

import pytest

from diffsynth_omniavatar.metrics.plots import line_plot

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_a_plot_has_a_path_for_each_curve_and_gaps():
    svg = line_plot({"a": [0, 1, float("nan"), 2], "b<": [3, 3, 3, 3]}, title="t", x_label="x", y_label="y", level=2.5)
    root = ElementTree.fromstring(svg)
    paths = [element.get("d") for element in root.iter("{http://www.w3.org/2000/svg}path")]
    curves = [path for path in paths if "L" in path]
    assert len(curves) == 2 and curves[0].count("M") == 2
    with pytest.raises(ValueError, match="no finite value"):
        line_plot({"a": [float("nan")]}, title="t", x_label="x", y_label="y")
    with pytest.raises(ValueError, match=r"curves of \[1, 2\] values"):
        line_plot({"a": [1], "b": [1, 2]}, title="t", x_label="x", y_label="y")


def test_dots_mark_each_value_also_a_lone_one():
    def dots(values):
        root = ElementTree.fromstring(line_plot({"a": values}, title="t", x_label="x", y_label="y", dots=True))
        return len([*root.iter("{http://www.w3.org/2000/svg}circle")])

    assert [dots([1]), dots([1, float("nan"), 2])] == [1, 2]
