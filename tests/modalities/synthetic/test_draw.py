import pickle
import time

import numpy as np
import pytest

from core.errors import ConfigError, DataError
from modalities.synthetic.draw import COLORS, SyntheticSource, captions, coverage

MODALITIES = ("image", "video", "audio")


@pytest.mark.parametrize(
    ("modality", "options", "shape", "dtype", "rate"),
    [
        ("image", {}, (16, 16, 3), np.uint8, None),
        ("image", {"size": 33}, (33, 33, 3), np.uint8, None),
        ("video", {"frames": 9, "size": 24}, (9, 24, 24, 3), np.uint8, 8.0),
        ("audio", {}, (4000, 1), np.float32, 4000.0),
        ("audio", {"rate": 8000, "seconds": 0.5}, (4000, 1), np.float32, 8000),
    ],
)
def test_shapes_types_and_rates(modality, options, shape, dtype, rate):
    record = SyntheticSource(modality, **options).read(5)
    assert record.media.shape == shape
    assert record.media.dtype == dtype
    assert record.rate == rate
    assert len(record.captions) == 1


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_record_is_a_function_of_seed_and_index(modality):
    source = SyntheticSource(modality, seed=3)
    first = source.read(11)
    source.read(12)
    again = pickle.loads(pickle.dumps(SyntheticSource(modality, seed=3))).read(11)  # drawn anew
    assert first.key == again.key
    assert np.array_equal(first.media, again.media)
    period = len(captions(modality))
    same_caption = source.read(11 + period)
    assert same_caption.captions == first.captions
    assert not np.array_equal(same_caption.media, first.media)
    other_seed = SyntheticSource(modality, seed=4).read(11)
    assert other_seed.captions == first.captions
    assert not np.array_equal(other_seed.media, first.media)
    assert other_seed.key != first.key


@pytest.mark.parametrize("modality", MODALITIES)
def test_drawn_records_are_kept_while_there_is_room(modality, monkeypatch):
    source = SyntheticSource(modality)
    first = source.read(0)
    monkeypatch.setattr("modalities.synthetic.draw.KEPT_BYTES", 2 * first.media.nbytes)
    assert source.read(0) is first
    with pytest.raises(ValueError, match="read-only"):
        first.media[0] = 0  # nobody changes what the next epoch reads
    assert source.read(1) is source.read(1)
    assert source.read(2) is not source.read(2)
    assert np.array_equal(source.read(2).media, SyntheticSource(modality).read(2).media)


@pytest.mark.parametrize(("modality", "count"), [("image", 24), ("video", 48), ("audio", 216)])
def test_every_caption_occurs_once_per_round(modality, count):
    source = SyntheticSource(modality, count=2 * count)
    texts = [source.read(index).captions[0] for index in range(count, 2 * count)]
    assert len(set(texts)) == count
    assert texts == captions(modality)
    assert source.labels() == sorted({source.read(index).label for index in range(count)})
    assert len({source.read(index).key for index in range(2 * count)}) == 2 * count


def test_coverage_is_the_area():
    half = np.array([0.5])
    # A circle of radius 0.25 covers pi / 16 of the frame; edges are rounded to subpixels, 256 of a side.
    assert coverage("circle", 64, half, half, 0.25).mean() == pytest.approx(np.pi / 16, abs=1e-3)
    assert coverage("square", 64, half, half, 0.25).mean() == pytest.approx(0.45**2, abs=4e-3)
    assert coverage("triangle", 64, half, half, 0.25).mean() == pytest.approx(0.58 * 1.9**2 / 16, abs=4e-3)
    assert coverage("cross", 64, half, half, 0.25).mean() == pytest.approx((2 * 4 * 0.34 - 4 * 0.34**2) / 16, abs=4e-3)


def test_shapes_stay_inside_their_frame():
    for modality in ("image", "video"):
        source = SyntheticSource(modality, size=32)
        for index in range(0, 960, 5):
            frames = source.read(index).media.reshape(-1, 32, 32, 3)
            area = (frames.max(axis=-1) > 100).sum(axis=(1, 2))
            assert area.min() > 0.85 * area.max()  # nothing is cut away in any frame
            assert area.max() < 0.7 * 32 * 32


def test_a_video_moves_several_pixels_the_way_its_caption_says():
    source = SyntheticSource("video", size=16, frames=8)
    for index in range(48):
        record = source.read(index)
        light = record.media.max(axis=-1).astype(float) - 22
        axis = np.arange(16)
        x = (light.sum(axis=1) @ axis) / light.sum(axis=(1, 2))
        y = (light.sum(axis=2) @ axis) / light.sum(axis=(1, 2))
        motion = record.captions[0].split()[-1]
        along, sign = {"left": (x, -1), "right": (x, 1), "up": (y, -1), "down": (y, 1)}[motion]
        across = y if along is x else x
        assert sign * (along[-1] - along[0]) > 6
        assert abs(across[-1] - across[0]) < 0.5


def test_audio_is_three_notes_between_silences():
    record = SyntheticSource("audio", octave=4).read(captions("audio").index("notes C E A"))
    wave = record.media[:, 0]
    assert 0.4 < np.abs(wave).max() < 0.75
    assert np.abs(wave[[0, 1333, 2667, 3999]]).max() < 0.01
    for part, hertz in zip(np.array_split(wave, 3), (261.63, 329.63, 440.0), strict=True):
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 16000))
        assert np.argmax(spectrum) * 4000 / 16000 == pytest.approx(hertz, abs=1)


def test_colors_are_the_named_ones():
    source = SyntheticSource("image", size=32)
    for index, caption in enumerate(captions("image")):
        center = source.read(index).media[14:18, 14:18].reshape(-1, 3).mean(axis=0)
        away = {name: np.abs(center - np.array(color)).sum() for name, color in COLORS.items()}
        assert min(away, key=away.get) in caption.split()


def test_fingerprint_tells_settings_apart():
    prints = [
        SyntheticSource("image").fingerprint(),
        SyntheticSource("video").fingerprint(),
        SyntheticSource("image", seed=1).fingerprint(),
        SyntheticSource("image", count=7).fingerprint(),
        SyntheticSource("image", size=17).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert SyntheticSource("image").fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("modality", "options", "message"),
    [
        ("images", {}, "images.*Did you mean: 'image'"),
        ("image", {"size": 4}, "size: 4"),
        ("video", {"frames": 1}, "frames: 1"),
        ("audio", {"rate": 2000.0}, "rate: 2000"),
        ("audio", {"seconds": 0.1}, "seconds: 0.1"),
        ("image", {"count": 0}, "count: 0"),
    ],
)
def test_wrong_settings_are_refused(modality, options, message):
    with pytest.raises(ConfigError, match=message):
        SyntheticSource(modality, **options)


def test_reading_past_the_end_is_refused():
    with pytest.raises(DataError, match="record 3 of 3"):
        SyntheticSource("image", count=3).read(3)


def test_drawing_is_no_bottleneck():
    # Measured 18,000 images and 5,000 videos a second on one core; the limits leave room for a busy machine.
    for modality, rate in (("image", 1000), ("video", 250), ("audio", 400)):
        SyntheticSource(modality).read(0)
        best = min(_seconds(SyntheticSource(modality)) for _ in range(3))
        assert 50 / best > rate


def _seconds(source: SyntheticSource) -> float:
    start = time.process_time()
    for index in range(50):
        source.read(index)
    return max(time.process_time() - start, 1e-9)
