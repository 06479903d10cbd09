import importlib.util

import pytest
from PIL import Image

from modalities.data.sources.selection import SUFFIXES
from modalities.media import suffixes
from modalities.media.suffixes import READERS, readable, unreadable


@pytest.mark.parametrize("modality", sorted(READERS))
def test_every_suffix_is_either_taken_or_named_with_what_would_read_it(modality):
    known = [suffix for each in READERS[modality].values() for suffix in each]
    assert len(set(known)) == len(known)
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in known)
    assert sorted(known) == sorted([*readable(modality), *unreadable(modality)])
    assert SUFFIXES[modality] == readable(modality)


def test_usual_names_of_usual_formats_are_taken():
    assert {".jfif", ".jpe", ".apng", ".png", ".jpg"} <= set(SUFFIXES["image"])
    assert {".aif", ".oga", ".wav", ".m4a", ".aac"} <= set(SUFFIXES["audio"])


def test_a_decoder_that_is_installed_later_takes_its_suffixes_in(monkeypatch):
    found = importlib.util.find_spec

    def pretend(there):
        monkeypatch.setattr(suffixes, "find_spec", lambda name: there if name == "pillow_heif" else found(name))

    pretend(None)
    assert ".heic" not in readable("image")
    assert unreadable("image")[".heic"] == "pillow-heif"
    pretend("something")
    assert ".heic" in readable("image")
    assert ".heic" not in unreadable("image")


def test_pillow_without_avif_takes_no_avif(monkeypatch):
    monkeypatch.setattr(suffixes, "find_spec", lambda name: None)
    monkeypatch.setattr(suffixes.features, "modules", {})
    assert ".avif" in unreadable("image")
    Image.init()
    monkeypatch.undo()
    assert (".avif" in readable("image")) == ("AVIF" in Image.OPEN)
