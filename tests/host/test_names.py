"""Both generations of DiffSynth are there under the same names."""

import pytest

from diffsynth_omniavatar import host


def test_the_installed_generation_has_every_name():
    assert not [name for name in host.NAMES if not hasattr(host, name)]


def test_what_is_not_listed_cannot_be_taken():
    with pytest.raises(AttributeError, match="_HOST_CLASSES"):
        _ = host._HOST_CLASSES
    with pytest.raises(AttributeError, match="argparse"):
        _ = host.argparse
