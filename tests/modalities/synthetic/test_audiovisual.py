"""Synthetic videos with audio: what is drawn, and that the readers tell it back."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import ConfigError, DataError
from modalities.synthetic.audiovisual import LOWEST, MOTIONS, AudiovisualSource, captions, heights, nearest_note, pitch
from modalities.synthetic.audiovisual_check import agreement, read_audio, read_video, words_right

SOURCE = AudiovisualSource(count=96)


@pytest.fixture(scope="module")
def drawn() -> list[tuple]:
    return [SOURCE.draw(index) for index in range(len(SOURCE))]


def test_a_record_has_both_parts_and_one_caption_without_the_motion():
    record = SOURCE.read(5)
    assert record.part("video").media.shape == (9, 16, 16, 3)
    assert record.part("video").rate == 8
    assert record.part("audio").media.shape == (4500, 1)
    assert record.part("audio").rate == 4000
    assert not set(record.captions[0].split()) & set(MOTIONS)
    assert SOURCE.read(5).part("audio").media.tobytes() == record.part("audio").media.tobytes()
    assert AudiovisualSource(seed=1, count=96).read(5).media.tobytes() != record.media.tobytes()


def test_every_caption_comes_equally_often_with_all_motions(drawn):
    said = [caption for caption, *_ in drawn]
    assert all(said.count(caption) == 8 for caption in captions())
    shapes = {tuple(np.sign(np.diff(height)[[0, -1]]).astype(int)) for _, height, *_ in drawn}
    assert shapes == {(1, 1), (-1, -1), (1, -1), (-1, 1)}


def test_heights_and_notes_by_hand():
    assert heights("up", 0.5, 0.4, 4) == pytest.approx([0.35, 0.45, 0.55, 0.65])
    assert heights("dip", 0.5, 0.4, 2) == pytest.approx([0.4, 0.4])
    assert nearest_note(np.array([0.2, 0.8, 0.51, -1.0])).tolist() == [0, 7, 4, 0]
    assert pitch(np.array([0, 7])) == pytest.approx([LOWEST, LOWEST * 2**1.5])


def test_the_readers_are_right_about_all_that_is_drawn(drawn):
    seen = [read_video(video) for _, _, video, _ in drawn]
    heard = [read_audio(waveform, 4000, 9) for _, _, _, waveform in drawn]
    said, true = [caption for caption, *_ in drawn], np.stack([height for _, height, *_ in drawn])
    video, audio = (np.stack([row[0] for row in rows]) for rows in (seen, heard))
    for one, other in ((video, true), (audio, true), (video, audio)):
        found = agreement(one, other)
        assert found["right"] == 1
        assert found["chance"] < 0.3
    assert words_right(said, [row[1] for row in seen], [row[2] for row in seen]) == {"color": 1, "shape": 1}
    assert all(shape == caption.split()[2] for (_, shape), caption in zip(heard, said, strict=True))


def test_noise_has_no_track(drawn):
    rng = np.random.default_rng(0)
    videos = rng.integers(0, 256, (24, 9, 16, 16, 3), dtype=np.uint8)
    true = np.stack([height for _, height, *_ in drawn[:24]])
    assert agreement(np.stack([read_video(video)[0] for video in videos]), true)["right"] < 0.2
    waveforms = rng.normal(0, 0.2, (24, 4500))
    assert agreement(np.stack([read_audio(waveform, 4000, 9)[0] for waveform in waveforms]), true)["right"] < 0.2


def test_values_out_of_range_are_named():
    with pytest.raises(ConfigError) as caught:
        AudiovisualSource(size=4, frames=2, rate=1000, count=0)
    assert [line.split(":")[0] for line in caught.value.problems] == ["count", "size", "frames", "audio_rate", "rate"]
    with pytest.raises(DataError, match="record 96 of 96"):
        SOURCE.read(96)
