"""Parts of a stream: positions on one axis of time, and segments."""

from __future__ import annotations

import pytest
import torch

from modalities.audio import AudioAdapter, AudioConfig
from modalities.image import ImageAdapter, ImageConfig
from modalities.streams import given_tokens, lengths, make_parts, make_segments, whole_part
from modalities.video import VideoAdapter, VideoConfig

VIDEO = VideoAdapter(VideoConfig(size=[8], frames=9, fps=8, patch=4, patch_frames=2))
AUDIO = AudioAdapter(AudioConfig(sample_rate=4000, seconds=1.125, hop=125))


def test_one_part_keeps_the_positions_of_its_grid():
    parts = make_parts({"image": ImageAdapter(ImageConfig([8, 8]))})
    assert torch.equal(parts["image"].ids, parts["image"].adapter.ids())
    assert not parts["image"].ids.is_floating_point()


def test_the_middle_of_every_token_in_seconds():
    """Frame 0 alone, then two frames a token; MDCT frame f is centerd at sample 125 f."""
    assert VIDEO.seconds().tolist() == pytest.approx([1 / 16, 2 / 8, 4 / 8, 6 / 8, 8 / 8])
    assert AUDIO.seconds().tolist() == pytest.approx([f / 32 for f in range(37)])
    whole = VideoAdapter(VideoConfig(size=[8], frames=8, fps=4, patch=4, patch_frames=4, first_frame_alone=False))
    assert whole.seconds().tolist() == pytest.approx([0.5, 1.5])
    assert ImageAdapter(ImageConfig([8])).seconds().tolist() == [0]


def test_what_happens_together_lies_together():
    parts = make_parts({"video": VIDEO, "audio": AUDIO})
    video, audio = parts["video"].ids, parts["audio"].ids
    assert audio[:, 0].tolist() == pytest.approx(list(range(37)))  # the finest part has steps of 1
    assert video[:, 0].unique().tolist() == pytest.approx([2, 8, 16, 24, 32])
    assert torch.equal(video[:, 1:].long(), VIDEO.ids()[:, 1:])
    scaled = make_parts({"video": VIDEO, "audio": AUDIO}, per_second=24)
    assert scaled["audio"].ids[:, 0].tolist() == pytest.approx([0.75 * f for f in range(37)])


def test_segments_carry_names_weights_and_what_is_given():
    parts = make_parts({"clip": VIDEO, "sound": AUDIO}, weight={"sound": 0.5})
    assert lengths(parts) == (20, 37)
    conditioning_mask = whole_part(parts, "clip")[None].expand(2, -1)
    tokens = [torch.zeros(2, len(part.ids), part.adapter.channels) for part in parts.values()]
    video, audio = make_segments(parts, tokens, conditioning_mask)
    assert (video.name, video.modality, video.weight) == ("clip", "video", 1.0)
    assert (audio.name, audio.modality, audio.weight) == ("sound", "audio", 0.5)
    assert video.conditioning_mask.all()
    assert not audio.conditioning_mask.any()
    assert all(segment.conditioning_mask is None for segment in make_segments(parts, tokens))


def test_parts_that_are_given_in_every_sample():
    parts = make_parts({"clip": VIDEO, "sound": AUDIO}, given={"clip": True, "sound": False})
    assert torch.equal(given_tokens(parts), whole_part(parts, "clip"))
    assert given_tokens(make_parts({"clip": VIDEO, "sound": AUDIO})) is None
