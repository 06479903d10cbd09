import numpy as np
import pytest

from core.errors import ConfigError, ShapeError
from modalities.synthetic.check import accuracy, check, read_audio, read_image, read_video
from modalities.synthetic.draw import SyntheticSource, captions

RATE = 4000.0


def noisy(media: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Media with Gaussian noise, sigma in units of the full range of an image or the amplitude of an audio clip."""
    if media.dtype == np.uint8:
        return np.clip(media + rng.normal(0, 255 * sigma, media.shape), 0, 255).astype(np.uint8)
    return (media + rng.normal(0, sigma, media.shape)).astype(np.float32)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_every_caption_is_read_back_through_noise(modality, sigma):
    rng = np.random.default_rng(0)
    source = SyntheticSource(modality, seed=1)
    checks = []
    for index in range(len(captions(modality))):
        record = source.read(index)
        checks.append(check(modality, noisy(record.media, sigma, rng), record.captions[0], record.rate))
    assert accuracy(checks)["all"] == 1.0


@pytest.mark.parametrize("size", [16, 24, 64])
def test_other_sizes_are_read_too(size):
    image = SyntheticSource("image", size=size)
    video = SyntheticSource("video", size=size, frames=5)
    for index in (0, 5, 10, 15, 23):
        assert all(check("image", image.read(index).media, image.read(index).captions[0]).values())
        assert all(check("video", video.read(index).media, video.read(index).captions[0]).values())


@pytest.mark.parametrize("octave", [4, 5])
def test_notes_are_read_in_any_octave_and_slightly_out_of_tune(octave):
    for detune in (0.975, 1.0, 1.025):  # 2.5% is 43 cents
        source = SyntheticSource("audio", octave=octave, rate=RATE * detune)
        record = source.read(captions("audio").index("notes D F A"))
        assert read_audio(record.media, RATE) == ["D", "F", "A"]


def test_a_wrong_result_is_wrong_in_the_attribute_that_is_wrong():
    image = SyntheticSource("image").read(captions("image").index("a red circle")).media
    assert check("image", image, "a red circle") == {"color": True, "shape": True}
    assert check("image", image, "a blue circle") == {"color": False, "shape": True}
    assert check("image", image, "a red cross") == {"color": True, "shape": False}

    video = SyntheticSource("video").read(captions("video").index("a cyan cross moving up")).media
    asked = {"color": True, "shape": True, "motion": True}
    assert check("video", video, "a cyan cross moving up") == asked
    assert check("video", video, "a cyan cross moving left") == asked | {"motion": False}
    assert check("video", video[::-1], "a cyan cross moving up") == asked | {"motion": False}
    assert check("video", video[::-1], "a cyan cross moving down") == asked
    assert check("video", video, "a green cross moving up") == asked | {"color": False}
    assert check("video", video, "a cyan circle moving up") == asked | {"shape": False}
    still = np.repeat(video[:1], 8, axis=0)
    assert check("video", still, "a cyan cross moving up") == asked | {"motion": False}

    audio = SyntheticSource("audio").read(captions("audio").index("notes C E G")).media
    assert check("audio", audio, "notes C E A", RATE) == {"note 1": True, "note 2": True, "note 3": False}
    assert check("audio", audio, "notes G E C", RATE) == {"note 1": False, "note 2": True, "note 3": False}


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("level", [0, 20, 128, 255])
def test_nothing_is_seen_in_noise_or_emptiness(sigma, level):
    rng = np.random.default_rng(1)
    for _ in range(5):
        assert read_image(noisy(np.full((16, 16, 3), level, np.uint8), sigma, rng))[:2] == (None, None)
        assert read_video(noisy(np.full((8, 16, 16, 3), level, np.uint8), sigma, rng))[:3] == (None, None, None)


def test_an_image_full_of_one_color_is_no_shape():
    red = np.broadcast_to(np.array([230, 40, 40], np.uint8), (16, 16, 3))
    assert check("image", red, "a red square") == {"color": False, "shape": False}
    assert read_video(np.broadcast_to(red, (8, 16, 16, 3)))[:3] == (None, None, None)


def test_nothing_is_heard_in_silence_noise_or_between_the_notes():
    rng = np.random.default_rng(2)
    assert read_audio(np.zeros(4000), RATE) == [None, None, None]
    assert read_audio(np.full(4000, np.nan), RATE) == [None, None, None]
    for sigma in (0.01, 0.2, 0.7):
        assert read_audio(rng.normal(0, sigma, (4000, 1)), RATE) == [None, None, None]
    time = np.arange(4000) / RATE
    b_flat = np.sin(2 * np.pi * 479.8 * time)  # 150 cents above A, 150 below C
    assert read_audio(b_flat, RATE) == [None, None, None]


def test_confidence_falls_with_noise():
    rng = np.random.default_rng(3)
    image = SyntheticSource("image").read(0).media
    seen = [read_image(noisy(image, sigma, rng))[2] for sigma in (0.0, 0.1, 0.2, 0.4)]
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > 0.9


def test_accuracy_counts_each_attribute_and_all_of_them():
    assert accuracy([{"a": True, "b": True}, {"a": True, "b": False}]) == {"a": 1.0, "b": 0.5, "all": 0.5}
    assert accuracy([{"a": True, "b": False}, {"a": False, "b": True}])["all"] == 0.0
    assert accuracy([]) == {}


def test_wrong_media_is_refused():
    with pytest.raises(ShapeError, match="uint8"):
        read_image(np.zeros((16, 16, 3), np.float32))
    with pytest.raises(ShapeError, match="square"):
        read_image(np.zeros((16, 8, 3), np.uint8))
    with pytest.raises(ShapeError, match="T >= 2"):
        read_video(np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ShapeError, match="samples"):
        read_audio(np.zeros(10), RATE)
    with pytest.raises(ShapeError, match="rate"):
        check("audio", np.zeros(4000), "notes C E G")
    with pytest.raises(ConfigError, match="sound"):
        check("sound", np.zeros(4000), "notes C E G")
