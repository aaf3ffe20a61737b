"""What is wrong with the flags of `omniavatar page` is told in a line before a server starts."""

import sys

import pytest

from diffsynth_omniavatar.app import cli


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--port", "70000"], "--port is 70000, wanted 1 to 65535."),
        (["--max_upload", "0"], "--max_upload is 0, wanted 1 MB or more."),
        (["--use_usp"], "--use_usp makes a video by several processes"),
        (["--data", "nowhere"], "--data nowhere is no folder"),
        ([], "The page needs gradio: pip install 'diffsynth-omniavatar[ui]'"),
    ],
)
def test_a_mistake_is_told_before_the_server_starts(tmp_path, monkeypatch, capsys, flags, told):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "diffsynth_omniavatar.app.page.page", raising=False)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["page", *flags]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["anna", ":secret", "anna:"])
def test_a_name_and_a_password_are_wanted(text, capsys):
    with pytest.raises(SystemExit):
        cli.main(["page", "--auth", text])
    assert "wanted USER:PASSWORD" in capsys.readouterr().err
    assert cli.parse(["page", "--auth", "anna:se:cret"]).auth == ("anna", "se:cret")
