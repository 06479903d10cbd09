import numpy as np
import pytest
import torch

from autoencoders.config import AutoencoderConfig
from core.errors import ConfigError, DataError
from core.keys import generator
from modalities.files import index_video
from modalities.video import VideoAdapter, VideoConfig
from tests.modalities.making import numbered, numbers, picture_bytes, record, video_file


def frame_numbers(media: torch.Tensor) -> list[int]:
    return numbers(((media + 1) * 127.5).numpy())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return video_file(tmp_path_factory.mktemp("clips") / "a.mp4", numbered(40), fps=24)


def test_a_window_has_the_wanted_rate(clip):
    adapter = VideoAdapter(VideoConfig(frames=9, fps=12.0))
    seen = frame_numbers(adapter.load(record(clip), generator("a")))
    assert np.diff(seen).tolist() == [2] * 8
    assert 0 <= seen[0] <= 40 - 17


def test_the_window_is_a_function_of_its_generator(clip):
    adapter = VideoAdapter(VideoConfig(frames=5, fps=24.0))
    first = [frame_numbers(adapter.load(record(clip), generator("sample", i)))[0] for i in range(12)]
    again = [frame_numbers(adapter.load(record(clip.read_bytes()), generator("sample", i)))[0] for i in range(12)]
    assert first == again
    assert len(set(first)) > 6
    assert 0 <= min(first) < 12
    assert 24 < max(first) <= 35


def test_a_file_as_long_as_a_clip_is_taken_whole():
    item = record(numbered(9, 16, 16), rate=8.0)
    for i in range(5):
        media = VideoAdapter(VideoConfig()).load(item, generator(i))
        assert media.shape == (9, 3, 16, 16)
        assert frame_numbers(media) == list(range(9))


def test_a_short_file_is_refused_or_filled_up():
    item = record(numbered(6, 16, 16), rate=8.0)
    with pytest.raises(DataError, match=r"folder/file: 6 frames at 8 fps \(0.75 s\), a clip needs 9"):
        VideoAdapter(VideoConfig()).load(item, generator("a"))
    media = VideoAdapter(VideoConfig(short="repeat_last")).load(item, generator("a"))
    assert frame_numbers(media) == [0, 1, 2, 3, 4, 5, 5, 5, 5]


@pytest.mark.parametrize("first_frame_alone", [True, False])
def test_tokens_invert_bit_for_bit(first_frame_alone):
    config = VideoConfig(frames=8 + first_frame_alone, first_frame_alone=first_frame_alone)
    adapter = VideoAdapter(config)
    media = torch.rand(2, *adapter.size[:1], 3, 16, 16, generator=generator("a")) * 2 - 1
    tokens = adapter.encode(media)
    assert adapter.grid() == (4 + first_frame_alone, 4, 4)
    assert tokens.shape == (2, adapter.ids().shape[0], adapter.channels)
    assert adapter.channels == 96
    assert torch.equal(adapter.decode(tokens), media)


def test_a_given_first_frame_is_kept_and_only_that(tmp_path):
    adapter = VideoAdapter(VideoConfig())
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    media = adapter.load_first_frame(record(picture_bytes(pixels)), generator("a"))
    assert media.shape == (9, 3, 16, 16)
    given = adapter.given_first_frame()
    assert given.sum() == 16
    assert given.shape == (80,)
    tokens = adapter.encode(media[None])
    filled = torch.where(given[None, :, None], tokens, torch.randn(tokens.shape, generator=generator("fill")))
    video = adapter.decode(filled)[0]
    expected = torch.tensor(pixels).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(video[0], expected)
    assert not torch.isclose(video[1:], expected.expand(8, -1, -1, -1)).all(dim=(1, 2, 3)).any()


def test_a_first_frame_inside_a_token_cannot_be_given():
    with pytest.raises(ConfigError, match="first_frame_alone: must be true"):
        VideoAdapter(VideoConfig(frames=8, first_frame_alone=False)).given_first_frame()
    single = VideoAdapter(VideoConfig(frames=8, patch_frames=1, first_frame_alone=False))
    assert single.given_first_frame().sum() == 16


def test_positions_run_over_time_rows_and_columns():
    ids = VideoAdapter(VideoConfig(size=[8, 4], frames=3)).ids()
    assert ids.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]


def test_all_frames_are_cut_at_one_place():
    pixels = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, None, :, None], (9, 16, 200, 3)).copy()
    adapter = VideoAdapter(VideoConfig(crop="random"))
    media = adapter.load(record(pixels, rate=8.0), generator("a"))
    assert (media == media[:1]).all()


def test_a_written_clip_has_its_frame_rate(tmp_path):
    adapter = VideoAdapter(VideoConfig(fps=8.0))
    media = adapter.load(record(numbered(9, 16, 16), rate=8.0), generator("a"))
    path = adapter.write(media, tmp_path / "clip")
    assert index_video(path, "x").seconds == pytest.approx(9 / 8)
    assert frame_numbers(adapter.load(record(path), generator("a"))) == list(range(9))


def test_every_problem_of_a_config_is_named():
    config = VideoConfig(size=[16, 15], frames=8, fps=0.0, short="loop")
    assert [line.split(":")[0] for line in config.problems()] == ["size", "fps", "frames", "short"]
    assert "frames: 8 is not 1 plus a multiple of patch_frames 2; nearest: 7 or 9" in config.problems()
    assert VideoConfig(frames=0, first_frame_alone=False).problems() == ["frames: 0 must be at least 1"]
    assert VideoConfig(frames=3, patch_frames=4, first_frame_alone=False).problems() == [
        "frames: 3 is not a multiple of patch_frames 4; nearest: 4"
    ]
    assert not VideoConfig(frames=1, patch_frames=4).problems()
    with pytest.raises(ConfigError, match=r"fps: 0\.0 must be above 0"):
        VideoAdapter(config)


def test_tokens_of_an_autoencoder_are_known_without_its_weights():
    adapter = VideoAdapter(VideoConfig(size=[192, 336], frames=45, autoencoder=AutoencoderConfig("wan22", "nowhere")))
    assert adapter.has_weights
    assert (adapter.grid(), adapter.channels) == ((12, 12, 21), 48)  # about 3k tokens of a clip (paper, App. A.2)
    assert adapter.given_first_frame().sum() == 12 * 21


def test_a_clip_goes_through_an_autoencoder_to_a_file(clip, tmp_path):
    small = pytest.importorskip("tests.autoencoders.small")
    config = AutoencoderConfig("wan22", str(small.save("wan22", tmp_path / "weights")))
    adapter = VideoAdapter(VideoConfig(size=[32], frames=5, autoencoder=config))
    media = adapter.load(record(clip), generator("a"))
    tokens = adapter.encode(media[None])
    assert tokens.shape == (1, 8, 48)
    assert adapter.whitening.mean.shape == (48,)
    decoded = adapter.decode(tokens)
    assert decoded.shape == (1, 5, 3, 32, 32)
    written = adapter.write(decoded[0], tmp_path / "a")
    assert index_video(written, "a", None).count(8.0) == 5
    first = adapter.load_first_frame(record(picture_bytes(np.zeros((40, 40, 3), np.uint8))), generator("a"))
    given = adapter.given_first_frame()
    assert torch.equal(adapter.encode(first[None])[:, given], adapter.encode(first[None, :1])[:, : given.sum()])


def test_problems_of_an_autoencoder_are_named():
    wan = AutoencoderConfig("wan22", "nowhere")
    problems = VideoConfig(size=[32], frames=8, patch_frames=2, first_frame_alone=True, autoencoder=wan).problems()
    assert problems == [
        "frames: 8 is not 1 plus a multiple of 4; the nearest legal sizes: 5 or 9",
        "patch_frames: not read by autoencoder.kind 'wan22'; leave it out",
        "first_frame_alone: not read by autoencoder.kind 'wan22'; leave it out",
    ]
    assert VideoConfig(size=[32, 40], autoencoder=wan).problems() == [
        "size: width: 40 is not a multiple of 16; the nearest legal sizes: 32 or 48"
    ]
