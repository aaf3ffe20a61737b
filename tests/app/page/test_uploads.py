"""Only files of the right kind and size are taken, from the folder of uploads alone; their names are the page's."""

import asyncio
import errno
import json

import pytest

from diffsynth_omniavatar.app.page.faults import FieldFaults
from diffsynth_omniavatar.app.page.safety import Safety, asks_elsewhere
from diffsynth_omniavatar.app.page.shown_files import shown_copy
from diffsynth_omniavatar.app.page.uploads import LORA, MEGABYTE, PICTURE, SOUND, VIDEO, kept_upload, upload_script

pytestmark = pytest.mark.one_host("imports nothing of the host")


@pytest.fixture
def keep(tmp_path):
    def keep(path, kind=PICTURE):
        return kept_upload(path, "image", kind, tmp_path / "uploads", tmp_path / "job" / "portrait", 1)

    (tmp_path / "uploads" / "hash").mkdir(parents=True)
    keep.folder = tmp_path / "uploads" / "hash"
    return keep


def fault(keep, *given):
    with pytest.raises(FieldFaults) as caught:
        keep(*given)
    assert list(caught.value.faults) == ["image"]
    return caught.value.faults["image"]


@pytest.mark.parametrize("name", ["a.png", "<img src=x>.PNG", "-rf .png", "a;b.png", "..png", "$(x).png"])
def test_a_copy_gets_a_name_of_the_page(keep, name):
    sent = keep.folder / name
    sent.write_bytes(b"picture")
    copy = keep(str(sent))
    assert copy.name == "portrait.png" and copy.read_bytes() == b"picture"


def test_nothing_outside_the_uploads_is_taken(keep, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (keep.folder / "link.png").symlink_to(secret)
    paths = [secret, keep.folder / ".." / ".." / "secret.png", keep.folder / "link.png", keep.folder, "/etc/passwd"]
    for path in map(str, paths):
        assert "send it again" in fault(keep, path)
    assert not (tmp_path / "job").exists()


def test_other_kinds_and_sizes_are_told(keep):
    text, large = keep.folder / "a.txt", keep.folder / "b.png"
    text.write_text("hello")
    large.write_bytes(bytes(MEGABYTE + 1))
    assert "ends in .txt is not a picture; wanted .png" in fault(keep, str(text))
    assert fault(keep, str(large)) == "The file is larger than 1 MB."
    for nothing in (None, ""):
        assert "Nothing here yet" in fault(keep, nothing)
    odd = keep.folder / "a.<b>"
    odd.write_text("hello")
    assert "<" not in fault(keep, str(odd))


def test_sound_may_come_in_a_video(keep):
    assert set(VIDEO.suffixes) < set(SOUND.suffixes) and not set(PICTURE.suffixes) & set(SOUND.suffixes)


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("/gradio_api/file=/srv/uploads/a.mp4", False),
        ("/gradio_api/file=http://example.org/a.mp4", True),
        ("/gradio_api/file=HTTPS%3A%2F%2Fexample.org", True),
        ("/gradio_api/proxy=https://example.org", True),
        ("/gradio_api/upload", False),
    ],
)
def test_the_server_fetches_nothing_from_elsewhere(path, refused):
    assert asks_elsewhere(path) == refused


def answers(safety, method, path):
    """Status and headers of the answer to a request."""
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(safety({"type": "http", "method": method, "path": path}, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_uploads_do_not_fill_the_disk_and_pages_load_nothing_from_elsewhere(tmp_path):
    async def server(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    safety = Safety(server, tmp_path, most_bytes=100)
    (tmp_path / "a.png").write_bytes(bytes(100))
    assert answers(safety, "POST", "/gradio_api/upload")[0] == 200
    (tmp_path / "b.png").write_bytes(bytes(1))
    assert answers(safety, "POST", "/gradio_api/upload")[0] == 507
    status, headers = answers(safety, "GET", "/")
    assert status == 200 and b"default-src 'self'" in headers[b"content-security-policy"]
    status, headers = answers(safety, "GET", "/gradio_api/file=https://example.org/a.js")
    assert status == 403 and b"content-security-policy" in headers
    (tmp_path / "a.png").unlink()
    (tmp_path / "c.png").write_bytes(bytes(200))
    (tmp_path / "d.png").hardlink_to(tmp_path / "c.png")
    assert answers(safety, "POST", "/gradio_api/upload")[0] == 200


def test_a_file_that_has_changed_is_shown_anew(tmp_path):
    video, uploads = tmp_path / "a <b>.mp4", tmp_path / "uploads"
    video.write_bytes(b"first")
    first = shown_copy(video, uploads)
    assert first == shown_copy(video, uploads) and first.is_relative_to(uploads) and first.name == "a__b_.mp4"
    video.unlink()  # as files are replaced whole
    video.write_bytes(b"second one")
    second = shown_copy(video, uploads)
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second one")


def test_the_browser_refuses_what_the_server_refuses():
    script = upload_script(7)
    kinds = json.loads(script.partition("KINDS = ")[2].partition(", MOST_MEGABYTES = 7,")[0])
    assert {kind["mark"]: kind["endings"] for kind in kinds} == {
        kind.css[-1]: list(kind.suffixes) for kind in (VIDEO, SOUND, PICTURE, LORA)
    }


def test_a_full_disk_is_told_to_who_sends_a_file(tmp_path):
    async def server(scope, receive, send):
        raise OSError(errno.ENOSPC, "No space left on device")

    safety = Safety(server, tmp_path, most_bytes=100)
    assert answers(safety, "POST", "/gradio_api/upload")[0] == 507
    with pytest.raises(OSError):
        answers(safety, "GET", "/")
