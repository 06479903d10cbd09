"""Generated against held-out media: known answers, names, and which records a classifier may see."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from core.errors import CheckpointError, ConfigError
from core.evaluation.manifold import PrecisionRecall
from core.keys import generator
from modalities.evaluation.attempts import Measured
from modalities.evaluation.networks.base import Features, Framewise
from modalities.evaluation.networks.chosen import (
    PartNetwork,
    network_names,
    own_classifier,
    own_networks,
    stored_networks,
)
from modalities.evaluation.networks.kinds import NetworkConfig
from modalities.evaluation.samples import compare, random_classes, samples
from modalities.evaluation.settings import EvaluationSettings
from tests.modalities.evaluation.subjects import CLASSES, Memory, subject

FEW = EvaluationSettings(generated=24, val=24, training=30, batch=5, classifier_steps=5)


class Colors(nn.Module):
    """A stand-in for Inception: mean colors, quarters of the image, logits."""

    name, kind, distance = "mean colors", "inception", "FID"

    def forward(self, media):
        pool = media.mean((2, 3))
        return Features(pool, media[:, :, ::4, ::4].flatten(1), 4 * pool)


def on_image(**networks) -> dict[str, PartNetwork]:
    return {name: PartNetwork("image", network) for name, network in networks.items()}


def features(count: int, seed: int = 0, shift: float = 0.0) -> Features:
    draw = generator("features", seed)
    pool = torch.randn(count, 3, generator=draw) + shift
    return Features(pool, torch.randn(count, 5, generator=draw), pool)


def test_equal_sides_have_distance_0_and_full_marks():
    found = compare(Colors(), features(400), features(400), seed=0)
    values = found.values
    assert values["FID"] == pytest.approx(0, abs=1e-6)
    assert values["sFID"] == pytest.approx(0, abs=1e-6)
    assert abs(values["KID"]) < 0.1
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    assert 1 <= values["IS"] <= 3
    assert (found.warnings, found.failed) == ([], [])


def test_a_shift_shows_in_closed_form_and_few_samples_are_warned_of():
    values = compare(Colors(), features(400), features(400, shift=2.0), seed=0).values
    assert values["FID"] == pytest.approx(3 * 2.0**2, rel=1e-5)
    wide = Features(torch.randn(20, 30, generator=generator("wide")))
    (line,) = compare(Colors(), wide, wide, seed=0).warnings
    assert line.startswith("FID: 20 samples for 30 features: the covariance lacks full rank")


def test_only_the_standard_inception_has_fid_and_is():
    network = Colors()
    network.kind, network.distance = "classifier", "FD (small classifier)"
    values = compare(network, *[replace(features(50), spatial=None)] * 2, seed=0).values
    assert set(values) == {
        "FD (small classifier)",
        "KID",
        "precision",
        "recall",
        "density",
        "coverage",
        "class score",
    }
    framewise = compare(Framewise(Colors()), features(50), features(50), seed=0).values
    assert {"framewise FID", "framewise sFID"} <= set(framewise)


def test_numbers_do_not_depend_on_the_batch_size():
    measured = {}
    for batch in (5, 24):
        found = measured[batch] = Measured()
        asked = subject(Memory("val", 40), Memory("train", 30))
        samples(asked, replace(FEW, batch=batch), on_image(inception=Colors()), found)
    assert measured[5].values == pytest.approx(measured[24].values, rel=1e-5)
    assert measured[5].warnings == measured[24].warnings
    assert {"samples/inception/FID", "samples/inception/sFID", "samples/inception/IS"} <= set(measured[5].values)


def test_as_many_samples_as_there_are_records_and_at_least_six():
    made = []
    asked = subject(Memory("val", 8), Memory("train", 30))
    samples(asked, FEW, on_image(inception=Colors()), Measured(), made.append)
    assert sum(made) == 8 * asked.sampler.steps
    found = Measured()
    samples(subject(Memory("val", 8, broken={1, 2, 3}), Memory("train", 30)), FEW, on_image(inception=Colors()), found)
    assert (found.values, found.failed) == ({}, ["samples"])
    assert found.warnings == ["samples is left out: 5 held-out records to compare with; at least 6 are needed"]


class Broken(Colors):
    """Fails on the `turn`-th batch."""

    def __init__(self, turn: int, error: Exception):
        super().__init__()
        self.turn, self.error = turn, error

    def forward(self, media):
        self.turn -= 1
        if self.turn == 0:
            raise self.error
        return super().forward(media)


@pytest.mark.parametrize("turn", [1, 5, 6, 10])  # held-out records make 5 batches, generated samples 5 more
def test_a_network_that_fails_does_not_take_the_others_with_it(turn):
    asked, whole, found = subject(Memory("val", 40), Memory("train", 30)), Measured(), Measured()
    samples(asked, FEW, on_image(inception=Colors()), whole)
    broken = Broken(turn, RuntimeError("CUDA out of memory\nTried to allocate"))
    samples(asked, FEW, on_image(broken=broken, inception=Colors()), found)
    assert found.values == whole.values
    assert found.failed == ["samples/broken"]
    assert "samples/broken is left out: RuntimeError: CUDA out of memory (test_samples.py:" in str(found.warnings)
    alone = Measured()
    samples(asked, FEW, on_image(broken=Broken(turn, RuntimeError("x"))), alone)
    assert alone.failed == ["samples/broken", "samples"]


def test_values_that_cannot_be_made_or_are_not_finite_do_not_take_the_others_with_them(monkeypatch):
    def broken(*_):
        raise torch.linalg.LinAlgError("eigh: did not converge")

    monkeypatch.setattr("modalities.evaluation.samples.frechet", broken)
    monkeypatch.setattr("modalities.evaluation.samples.precision_recall", lambda *_: PrecisionRecall(1.0, math.nan))
    found = compare(Colors(), features(50), features(50), seed=0)
    assert found.failed == ["FID", "sFID", "precision, recall"]
    assert set(found.values) == {"KID", "precision", "density", "coverage", "IS"}
    assert "precision, recall is left out: not finite: recall is nan" in found.warnings
    assert "LinAlgError: eigh: did not converge" in found.warnings[0]


def test_features_that_are_not_finite_are_said():
    bad = replace(features(50), pool=torch.full((50, 3), torch.nan), logits=torch.full((50, 3), torch.nan))
    found = compare(Colors(), features(50), bad, seed=0)
    assert {"FID", "KID", "IS"} <= set(found.failed)
    assert all(math.isfinite(value) for value in found.values.values())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_what_few_samples_allow_is_measured(count):
    least = {"FID": 2, "sFID": 2, "KID": 2, "precision": 4, "recall": 4, "density": 6, "coverage": 6, "IS": 1}
    found = compare(Colors(), features(count), features(count, seed=1), seed=0)
    assert set(found.values) == {name for name, needed in least.items() if count >= needed}


def test_random_classes_are_uniform_and_only_of_label_runs():
    prompts = random_classes(subject(Memory("a", 9), Memory("b", 9)).model, 0, 4000)
    found = [prompt.text for prompt in prompts]
    assert set(found) == {*CLASSES, "purple"}
    assert 900 < found.count("red") < 1100
    assert prompts[:50] == random_classes(subject(Memory("a", 9), Memory("b", 9)).model, 0, 50)
    with pytest.raises(ConfigError, match="conditioned on text; use val"):
        random_classes(subject(Memory("a", 9), Memory("b", 9), kind="text").model, 0, 5)


def test_a_classifier_sees_training_records_only_is_kept_and_is_not_mistaken_for_another(tmp_path):
    val, training = Memory("val", 20), Memory("train", 30, strange={4})
    asked = subject(val, training)
    network = own_classifier(asked, "image", FEW, tmp_path)
    assert val.reads == []
    assert sorted(training.reads) == list(range(30))
    assert network.name.startswith("small classifier trained on images in memory")
    (file,) = tmp_path.iterdir()
    again = own_classifier(subject(val, Memory("train", 30, strange={4})), "image", FEW, tmp_path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in network.state_dict().items())
    assert [*tmp_path.iterdir()] == [file]
    for other, settings in ((Memory("train", 31), FEW), (training, replace(FEW, classifier_steps=6))):
        own_classifier(subject(val, other), "image", settings, tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


def test_networks_of_one_kind_are_numbered(tmp_path):
    asked = subject(Memory("val", 20), Memory("train", 30))
    path = str(own_classifier(asked, "image", FEW, tmp_path).save(tmp_path / "mine"))
    one, two = NetworkConfig(), NetworkConfig("classifier", path)
    assert network_names(replace(FEW, networks=[one])) == ["classifier"]
    both = replace(FEW, networks=[one, two])
    assert network_names(both) == ["classifier-1", "classifier-2"]
    assert list(stored_networks(asked, both, tmp_path)[0]) == ["classifier-2"]
    assert list(own_networks(asked, both, tmp_path, Measured())) == ["classifier-1"]


def test_a_network_without_weights_is_left_out_and_without_any_network_nothing_is_begun(tmp_path):
    asked = subject(Memory("val", 20), Memory("train", 30))
    lost = NetworkConfig("inception", "nowhere.pth")
    found, wrong = stored_networks(asked, replace(FEW, networks=[lost, NetworkConfig()]), tmp_path)
    assert (found, list(wrong)) == ({}, ["inception"])
    assert "no usable weights at 'nowhere.pth'" in wrong["inception"]
    with pytest.raises(CheckpointError, match=r"no usable weights at 'nowhere\.pth'"):
        stored_networks(asked, replace(FEW, networks=[lost]), tmp_path)


def test_a_classifier_that_cannot_be_trained_is_noted(tmp_path):
    asked, found = subject(Memory("val", 20), Memory("train", 30, broken=set(range(30)) - {0, 3, 6})), Measured()
    assert own_networks(asked, FEW, tmp_path, found) == {}
    assert found.failed == ["samples/classifier"]
    assert "of one class; it needs at least two classes" in found.warnings[0]


def test_a_classifier_that_cannot_be_stored_is_used_all_the_same(tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    asked, found = subject(Memory("val", 20), Memory("train", 30)), Measured()
    assert list(own_networks(asked, FEW, tmp_path / "taken", found)) == ["classifier"]
    assert found.failed == []
    assert "cannot be written: File exists; it is trained again the next time" in found.warnings[0]
