import sys

import numpy as np
import pytest

from core.errors import ConfigError
from modalities.media.audio import probe_audio, resample
from modalities.media.video import index_video


@pytest.mark.parametrize(
    ("package", "call", "works"),
    [
        ("av", lambda: index_video(b"x", "a.mp4"), "Images and most audio clips work"),
        ("soundfile", lambda: probe_audio(b"x", "a.wav"), "Images and videos work"),
        ("soxr", lambda: resample(np.zeros((8, 1)), 8, 4), "Audio clips that have the wanted rate work"),
    ],
)
def test_a_missing_package_is_one_line(package, call, works, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value) == (
        f"this file needs the package {package}, which is not installed: pip install -e '.[media]'. {works} without it"
    )
