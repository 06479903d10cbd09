import av
import numpy as np
import pytest
import torch

from autoencoders.wan22 import Wan22Config
from core.errors import ConfigError, DataError
from core.keys import generator
from modalities.media.video import index_video
from modalities.video import VideoAdapter, VideoConfig
from tests.modalities.making import image_bytes, numbered, numbers, record, video_file


def frame_numbers(media: torch.Tensor) -> list[int]:
    return numbers(((media + 1) * 127.5).numpy())


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return video_file(tmp_path_factory.mktemp("clips") / "a.mp4", numbered(40), fps=24)


def test_a_window_has_the_wanted_rate(video):
    adapter = VideoAdapter(VideoConfig(frames=9, fps=12.0))
    seen = frame_numbers(adapter.load(record(video), generator("a")))
    assert np.diff(seen).tolist() == [2] * 8
    assert 0 <= seen[0] <= 40 - 17


def test_the_window_is_a_function_of_its_generator(video):
    adapter = VideoAdapter(VideoConfig(frames=5, fps=24.0))
    first = [frame_numbers(adapter.load(record(video), generator("sample", i)))[0] for i in range(12)]
    again = [frame_numbers(adapter.load(record(video.read_bytes()), generator("sample", i)))[0] for i in range(12)]
    assert first == again
    assert len(set(first)) > 6
    assert 0 <= min(first) < 12
    assert 24 < max(first) <= 35


def test_a_file_as_long_as_a_window_is_taken_whole():
    item = record(numbered(9, 16, 16), rate=8.0)
    for i in range(5):
        media = VideoAdapter(VideoConfig()).load(item, generator(i))
        assert media.shape == (9, 3, 16, 16)
        assert frame_numbers(media) == list(range(9))


def test_a_short_file_is_refused_or_filled_up():
    item = record(numbered(6, 16, 16), rate=8.0)
    with pytest.raises(DataError, match=r"folder/file: 6 frames at 8 fps \(0.75 s\), a video needs 9"):
        VideoAdapter(VideoConfig()).load(item, generator("a"))
    media = VideoAdapter(VideoConfig(short="repeat_last")).load(item, generator("a"))
    assert frame_numbers(media) == [0, 1, 2, 3, 4, 5, 5, 5, 5]


def damaged(path, frame: int) -> bytes:
    """With an image of h264 in MP4 that cannot be decoded."""
    with av.open(str(path)) as container:
        place = {packet.pts: packet.pos for packet in container.demux(video=0)}
    data = bytearray(path.read_bytes())
    start = place[sorted(pts for pts in place if pts is not None)[frame]]
    data[start : start + 4] = b"\xff" * 4  # the length of its first unit
    return bytes(data)


def test_a_damaged_place_is_not_a_damaged_file(tmp_path):
    """Another window of it is drawn: always the same one."""
    path = video_file(tmp_path / "a.mp4", numbered(40), fps=24, gop=4)
    broken, adapter = damaged(path, 20), VideoAdapter(VideoConfig(frames=5, fps=24.0))
    others = 0
    for i in range(24):
        whole = frame_numbers(adapter.load(record(path), generator("sample", i)))
        seen = frame_numbers(adapter.load(record(broken), generator("sample", i)))
        assert seen == frame_numbers(adapter.load(record(broken), generator("sample", i)))
        assert np.diff(seen).tolist() == [1] * 4
        assert seen[-1] < 20 or seen[0] > 20
        touched = whole[0] <= 23 and whole[-1] >= 16  # the image, and those that a decoder returns behind it
        others += seen != whole
        assert seen == whole or touched
    assert others


def test_a_file_without_a_whole_window_is_refused(tmp_path):
    path = video_file(tmp_path / "a.mp4", numbered(9), fps=8)
    with pytest.raises(DataError, match=r"^folder/file: .*decoded.* \(windows tried: 1\)$"):
        VideoAdapter(VideoConfig()).load(record(damaged(path, 4)), generator("a"))
    path = video_file(tmp_path / "b.mp4", numbered(40), fps=24, gop=4)
    with pytest.raises(DataError, match=r"^folder/file: .*decoded.* \(windows tried: [234]\)$"):
        VideoAdapter(VideoConfig(frames=37, fps=24.0)).load(record(damaged(path, 20)), generator("a"))


def test_transparent_places_show_the_background(tmp_path):
    pixels = np.zeros((9, 16, 16, 4), np.uint8)
    pixels[..., 0], pixels[:, :, :8, 3], pixels[:, :, 8:, 3] = 255, 255, 51
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle", rate=8)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "argb"
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
        container.mux(stream.encode())
    media = VideoAdapter(VideoConfig(background=[0, 0, 250])).load(record(path), generator("a"))
    levels = ((media + 1) * 127.5).round()
    assert levels[4, :, 8, 2].tolist() == [255, 0, 0]
    assert levels[4, :, 8, 12].tolist() == [51, 0, 200]  # one fifth of red


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
    media = adapter.load_first_frame(record(image_bytes(pixels)), generator("a"))
    assert media.shape == (9, 3, 16, 16)
    conditioning_mask = adapter.first_frame_mask()
    assert conditioning_mask.sum() == 16
    assert conditioning_mask.shape == (80,)
    tokens = adapter.encode(media[None])
    filled = torch.where(
        conditioning_mask[None, :, None], tokens, torch.randn(tokens.shape, generator=generator("fill"))
    )
    video = adapter.decode(filled)[0]
    expected = torch.tensor(pixels).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(video[0], expected)
    assert not torch.isclose(video[1:], expected.expand(8, -1, -1, -1)).all(dim=(1, 2, 3)).any()


def test_a_first_frame_inside_a_token_cannot_be_given():
    with pytest.raises(ConfigError, match="first_frame_alone: must be true"):
        VideoAdapter(VideoConfig(frames=8, first_frame_alone=False)).first_frame_mask()
    single = VideoAdapter(VideoConfig(frames=8, patch_frames=1, first_frame_alone=False))
    assert single.first_frame_mask().sum() == 16


def test_positions_run_over_time_rows_and_columns():
    ids = VideoAdapter(VideoConfig(size=[8, 4], frames=3)).ids()
    assert ids.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]


def test_all_frames_are_cut_at_one_place():
    pixels = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, None, :, None], (9, 16, 200, 3)).copy()
    adapter = VideoAdapter(VideoConfig(crop="random"))
    media = adapter.load(record(pixels, rate=8.0), generator("a"))
    assert (media == media[:1]).all()


def test_all_frames_are_mirrored_together():
    adapter = VideoAdapter(VideoConfig(flip=True))
    media = adapter.load(
        record(np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8), rate=8.0), generator()
    )
    seen = [adapter.augment(media, generator("sample", i)) for i in range(16)]
    mirrored = sum(torch.equal(one, media.flip(3)) for one in seen)
    assert 2 < mirrored < 14
    assert mirrored + sum(torch.equal(one, media) for one in seen) == 16
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    first = adapter.load_first_frame(record(image_bytes(pixels)), generator("a"))[0]
    assert torch.equal(first, torch.tensor(pixels).permute(2, 0, 1) / 127.5 - 1)  # what a user gives is kept


@pytest.mark.parametrize("fps", [24, 30, 60])
def test_the_videos_of_the_paper(tmp_path, fps):
    """45 frames of 192 pixels at 24 fps (paper, App. A.2), from files of any rate."""
    count = fps * 2 + 1
    path = video_file(tmp_path / "a.mp4", ramp(count, 96, 168), fps=fps)
    adapter = VideoAdapter(VideoConfig(size=[192, 336], frames=45, fps=24.0, patch=16, patch_frames=4))
    media = adapter.load(record(path), generator("a"))
    assert media.shape == (45, 3, 192, 336)
    seen = ((media + 1) * 127.5).mean(dim=(1, 2, 3)).numpy() / 2  # of `ramp`: frame i is of level 2 i
    steps = np.diff(seen)
    assert steps.sum() == pytest.approx(44 * fps / 24, abs=1)
    assert np.abs(steps - fps / 24).max() < 1.5  # each is the last frame that is on screen


def ramp(frames: int, height: int, width: int) -> np.ndarray:
    levels = (2 * np.arange(frames)).clip(0, 255).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def test_a_video_of_uneven_times_is_what_the_screen_showed(tmp_path):
    gaps = np.random.default_rng(0).integers(10, 120, 40)
    times = np.cumsum(gaps) - gaps[0]
    path = video_file(tmp_path / "a.mp4", numbered(40), milliseconds=[int(time) for time in times])
    adapter = VideoAdapter(VideoConfig(frames=9, fps=10.0))
    for i in range(4):
        seen = frame_numbers(adapter.load(record(path), generator("sample", i)))
        shown = times[seen] / 1000
        assert (np.diff(seen) >= 0).all()
        # A frame is shown from its time on until the next one: 0.8 s pass between the first and the last.
        assert abs((shown[-1] - shown[0]) - 0.8) < 0.121


def test_pixels_that_are_not_square_keep_the_shape_of_the_scene(tmp_path):
    pixels = np.zeros((9, 48, 64, 3), np.uint8)
    pixels[:, :, 24:40] = 250  # 16 of 64 columns
    path = video_file(tmp_path / "a.mp4", pixels, fps=8, options={"x264-params": "sar=2/1"})
    media = VideoAdapter(VideoConfig(size=[48, 48])).load(record(path), generator("a"))
    assert (media[0, 0, 24] > 0).sum() == 32  # the screen shows them twice as wide


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
def test_workers_and_their_parent_load_the_same_videos(video, backend):
    """The parent reads first, as a run does to check its data; then workers that were forked off."""
    adapter = VideoAdapter(VideoConfig(frames=5, fps=24.0, backend=backend))
    try:
        first = adapter.load(record(video), generator("sample", 0))
    except ConfigError as error:
        pytest.skip(str(error))

    class Videos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, item: int) -> torch.Tensor:
            return adapter.load(record(video), generator("sample", item))

    expected = [
        VideoAdapter(VideoConfig(frames=5, fps=24.0)).load(record(video), generator("sample", i)) for i in range(8)
    ]
    loader = torch.utils.data.DataLoader(
        Videos(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    assert torch.equal(first, expected[0])
    assert all(torch.equal(one, other) for one, other in zip(loader, expected, strict=True))


def test_a_written_video_has_its_frame_rate(tmp_path):
    adapter = VideoAdapter(VideoConfig(fps=8.0))
    media = adapter.load(record(numbered(9, 16, 16), rate=8.0), generator("a"))
    path = adapter.write(media, tmp_path / "clip")
    assert index_video(path, "x").seconds == pytest.approx(9 / 8)
    assert frame_numbers(adapter.load(record(path), generator("a"))) == list(range(9))


def test_every_problem_of_a_config_is_named():
    config = VideoConfig(size=[16, 15], frames=8, fps=0.0, short="loop", backend="py_av")
    assert [line.split(":")[0] for line in config.problems()] == ["size", "frames", "fps", "short", "backend"]
    assert config.problems()[-1].endswith("is not one of pyav, decord, torchcodec. Did you mean: 'pyav'?")
    assert "frames: 8 is not 1 plus a multiple of patch_frames 2; nearest: 7 or 9" in config.problems()
    assert VideoConfig(frames=0, first_frame_alone=False).problems() == ["frames: 0 must be at least 1"]
    assert VideoConfig(frames=3, patch_frames=4, first_frame_alone=False).problems() == [
        "frames: 3 is not a multiple of patch_frames 4; nearest: 4"
    ]
    assert not VideoConfig(frames=1, patch_frames=4).problems()
    with pytest.raises(ConfigError, match=r"fps: 0\.0 must be above 0"):
        VideoAdapter(config)


def test_tokens_of_an_autoencoder_are_known_without_its_weights():
    adapter = VideoAdapter(VideoConfig(size=[192, 336], frames=45, autoencoder=Wan22Config(path="nowhere")))
    assert adapter.has_weights
    assert (adapter.grid(), adapter.channels) == ((12, 12, 21), 48)  # about 3k tokens of a video (paper, App. A.2)
    assert adapter.first_frame_mask().sum() == 12 * 21


def test_a_video_goes_through_an_autoencoder_to_a_file(video, tmp_path):
    small = pytest.importorskip("tests.autoencoders.small")
    config = Wan22Config(path=str(small.save("wan22", tmp_path / "weights")))
    adapter = VideoAdapter(VideoConfig(size=[32], frames=5, autoencoder=config))
    media = adapter.load(record(video), generator("a"))
    tokens = adapter.encode(media[None])
    assert tokens.shape == (1, 8, 48)
    assert adapter.normalization.mean.shape == (48,)
    decoded = adapter.decode(tokens)
    assert decoded.shape == (1, 5, 3, 32, 32)
    written = adapter.write(decoded[0], tmp_path / "a")
    assert index_video(written, "a", None).count(8.0) == 5
    first = adapter.load_first_frame(record(image_bytes(np.zeros((40, 40, 3), np.uint8))), generator("a"))
    conditioning_mask = adapter.first_frame_mask()
    assert torch.equal(
        adapter.encode(first[None])[:, conditioning_mask], adapter.encode(first[None, :1])[:, : conditioning_mask.sum()]
    )


def test_problems_of_an_autoencoder_are_named():
    wan = Wan22Config(path="nowhere")
    problems = VideoConfig(size=[32], frames=8, patch_frames=2, first_frame_alone=True, autoencoder=wan).problems()
    assert problems == [
        "patch_frames: not read by autoencoder.kind 'wan22'; leave it out",
        "first_frame_alone: not read by autoencoder.kind 'wan22'; leave it out",
        "frames: 8 is not 1 plus a multiple of 4; the nearest legal sizes: 5 or 9",
    ]
    assert VideoConfig(size=[32, 40], autoencoder=wan).problems() == [
        "size: width: 40 is not a multiple of 16; the nearest legal sizes: 32 or 48"
    ]
