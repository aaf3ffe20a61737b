"""What is wrong is told at the field where it was made, in words that do not name the page's own files."""

from pathlib import Path

import pytest

from diffsynth_omniavatar.app.page.faults import FieldFaults, field_faults, named
from diffsynth_omniavatar.generation.request import RequestError, TalkRequest

pytestmark = pytest.mark.one_host("imports nothing of the host")


def faults_of(error, files=None):
    with pytest.raises(FieldFaults) as caught, field_faults(files):
        raise error
    return caught.value.faults


def test_each_fault_of_a_request_goes_to_its_argument(tmp_path):
    with pytest.raises(FieldFaults) as caught, field_faults():
        TalkRequest(prompt="A person talks.", audio="a.wav", image="b.png", out=tmp_path / "c.mp4", crf=60, overlap=2)
    assert caught.value.faults == {
        "crf": "Crf is 60, wanted 0 to 51",
        "overlap": "Overlap is 2, wanted 1, 5, 9, 13, ...",
    }


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (RequestError("@audio: the file is silent"), "audio"),
        (RequestError("This is a V2V checkpoint: give @video."), "video"),
        (RequestError("mail me@home.org"), ""),
        (ValueError("--max_tokens is too small"), "max_tokens"),
        (FileNotFoundError("no such file"), ""),
    ],
)
def test_a_fault_names_its_field(error, field):
    assert list(faults_of(error)) == [field]


def test_the_pages_own_paths_are_not_told():
    path = Path("/srv/page/videos/1/portrait.png")
    fault = faults_of(RequestError(f"@image: {path}: cannot be read as an image"), {path: "the portrait"})
    assert fault == {"image": "The portrait cannot be read as an image"}
    assert named(f"{path}: The face is small; {path} has 9 pixels", {path: "the portrait"}) == (
        "The portrait: The face is small; the portrait has 9 pixels"
    )


def test_faults_of_fields_that_the_form_lacks_are_put_together():
    faults = FieldFaults({"image": "a", "video": "b", "": "c"})
    assert faults.placed({"image": None}) == {"image": "a", "": "b; c"}
    assert FieldFaults({"image": "a"}).placed({"image": None}) == {"image": "a"}
