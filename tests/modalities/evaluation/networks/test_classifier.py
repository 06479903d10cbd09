import pytest
import torch
from safetensors.torch import save_file

from core.errors import CheckpointError, ConfigError, DataError, ShapeError
from core.keys import generator
from modalities.evaluation.networks.classifier import Classifier, move, to_planes, train_classifier

CLASSES = ["red", "green", "blue"]


def colored(count: int = 90, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images that are lighter in one color, and which."""
    labels = torch.arange(count) % 3
    media = torch.rand(count, 3, side, side, generator=generator("coloured", count)) - 0.7
    media[torch.arange(count), labels] += 0.4
    return media, labels


def train(**changes) -> Classifier:
    media, labels = colored()
    settings = {"steps": 30, "batch": 32, "holdout": 0.2} | changes
    batches = zip(media.split(40), labels.split(40), strict=True)
    return train_classifier(batches, CLASSES, "image", "colored noise", **settings)


@pytest.fixture(scope="module")
def trained():
    return train()


def test_it_learns_and_says_how_well(trained):
    assert trained.held_out == 18
    assert trained.accuracy > 0.8
    assert trained.name == f"small classifier trained on colored noise, held-out accuracy {trained.accuracy:.3f}"
    assert "FID" not in trained.name + trained.distance
    media, labels = colored(60)
    features = trained(media)
    assert features.pool.shape == (60, 128)
    assert features.logits.shape == (60, 3)
    assert (features.logits.argmax(1) == labels).float().mean() > 0.8
    assert not any(weight.requires_grad for weight in trained.parameters())


def test_held_out_samples_are_measured_and_not_trained_on():
    """With wrong labels on just these, a classifier that never saw them names all others rightly and none of these."""
    media, labels = colored()
    held = torch.randperm(90, generator=generator(0, "classifier", "split"))[:18]
    wrong = labels.clone()
    wrong[held] = (labels[held] + 1) % 3
    network = train_classifier([(media, wrong)], CLASSES, "image", "x", steps=30, batch=32, holdout=0.2)
    assert network.accuracy < 0.1
    assert (network(media).logits.argmax(1) == labels).float().mean() > 0.9


def test_the_same_seed_gives_the_same_bits(trained):
    torch.rand(7)  # the global stream is not read
    again, other = train(), train(seed=1)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(other.net.head.weight, trained.net.head.weight)


def test_the_global_stream_is_not_touched():
    before = torch.random.get_rng_state()
    train(steps=2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_save_and_load(trained, tmp_path):
    loaded = Classifier.load(trained.save(tmp_path / "deep" / "net.safetensors"))
    assert (loaded.name, loaded.classes, loaded.held_out) == (trained.name, trained.classes, trained.held_out)
    media, _ = colored(5)
    assert torch.equal(loaded(media).pool, trained(media).pool)
    assert torch.equal(loaded(media[:1]).pool[0], loaded(media[:1]).pool[0])
    assert not loaded.training


def test_features_do_not_depend_on_the_batch(trained):
    media, _ = colored(6)
    torch.testing.assert_close(trained(media).pool[3:4], trained(media[3:4]).pool)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        Classifier.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Classifier.load(tmp_path / "text")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="is 'another safetensors file', expected"):
        Classifier.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.full((9,), 3), DataError, r"labels 3\.\.3 for 3 classes"),
        (torch.zeros(9, dtype=torch.long), DataError, "of one class"),
        (torch.zeros(9), ShapeError, r"float32 labels for 9 samples"),
        (torch.zeros(8, dtype=torch.long), ShapeError, r"\(8,\) torch.int64 labels for 9 samples"),
    ],
)
def test_unfit_labels_are_refused(labels, error, message):
    with pytest.raises(error, match=message):
        train_classifier([(colored(9)[0], labels)], CLASSES, "image", "x", steps=1)


def test_no_samples_are_refused():
    with pytest.raises(DataError, match="0 samples"):
        train_classifier([], CLASSES, "image", "x", steps=1)


def test_sample_rate_goes_with_audio():
    with pytest.raises(ConfigError, match="audio clips need one"):
        Classifier("audio", CLASSES, "x")
    with pytest.raises(ConfigError, match="others none"):
        Classifier("image", CLASSES, "x", 8000)
    with pytest.raises(ConfigError, match="no network for modality 'action'"):
        Classifier("action", CLASSES, "x")


def test_planes_of_images_are_their_levels_up_to_32_pixels():
    levels = torch.randint(0, 256, (2, 3, 16, 24), generator=generator("levels"), dtype=torch.uint8)
    assert torch.equal(to_planes(levels.float() / 127.5 - 1, "image", None), levels)
    big = torch.randint(0, 256, (2, 3, 64, 96), generator=generator("levels"), dtype=torch.uint8)
    planes = to_planes(big.float() / 127.5 - 1, "image", None)
    assert planes.shape == (2, 3, 32, 32)
    means = big.float().unfold(2, 2, 2).unfold(3, 3, 3).mean((-1, -2))
    assert (planes.float() - means).abs().max() <= 0.51


def test_planes_of_videos_are_eight_frames():
    video = torch.arange(15.0)[None, :, None, None, None].expand(1, 15, 3, 8, 8) / 127.5 - 1
    planes = to_planes(video, "video", None)
    assert planes.shape == (1, 24, 8, 8)
    assert planes[0, ::3, 0, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_planes_of_a_tone_show_its_pitch_and_level():
    rate = 4096
    seconds = torch.arange(rate) / rate
    tones = torch.stack([torch.sin(2 * torch.pi * pitch * seconds) for pitch in (256, 1024)])[:, None]
    planes = to_planes(tones, "audio", rate)[:, 0].float()  # (2, 64 bands, 64 frames)
    assert planes.shape == (2, 64, 64)
    band = planes[:, :, 20:40].mean(2).argmax(1)
    assert abs(int(band[0]) - 8) <= 1  # 64 bands up to 2048 Hz: 32 Hz each
    assert abs(int(band[1]) - 32) <= 1
    # A tenth of the amplitude is 20 dB less; 255 levels span 100 dB.
    softer = to_planes(tones / 10, "audio", rate)[:, 0].float()
    peak = (planes - softer)[0, int(band[0]), 20:40]
    torch.testing.assert_close(peak, torch.full((20,), 51.0), atol=1.5, rtol=0)


def test_only_images_are_mirrored():
    planes = torch.arange(32, dtype=torch.uint8).expand(64, 3, 8, 32)
    steps = {modality: move(planes, modality, generator("move")).long().diff(dim=-1) for modality in ("image", "video")}
    assert (steps["image"] == -1).any()
    assert not (steps["video"] == -1).any()


def test_audio_and_videos_can_be_told_apart():
    seconds = torch.arange(4000) / 4000
    labels = torch.arange(60) % 2
    pitch = torch.where(labels == 0, 400.0, 800.0)[:, None]
    noise = torch.randn(60, 1, 4000, generator=generator("hiss")) * 0.1
    waveforms = 0.5 * torch.sin(2 * torch.pi * pitch * seconds)[:, None] + noise
    network = train_classifier(
        [(waveforms, labels)], ["low", "high"], "audio", "tones", steps=40, batch=16, sample_rate=4000
    )
    assert network.accuracy == 1
    assert network(waveforms[:2]).pool.shape == (2, 128)

    ramp = torch.linspace(-1, 1, 9)
    videos = torch.stack([ramp if label else ramp.flip(0) for label in labels])[:, :, None, None, None]
    videos = videos.expand(60, 9, 3, 8, 8) + 0.1 * torch.randn(60, 9, 3, 8, 8, generator=generator("grain"))
    network = train_classifier([(videos, labels)], ["darker", "lighter"], "video", "fades", steps=40, batch=16)
    assert network.accuracy == 1
