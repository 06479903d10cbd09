"""Generated against held-out media: known answers, names, and which records a classifier may see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from core.errors import ConfigError, DataError
from core.keys import generator
from modalities.evaluation.samples import compare, feature_networks, own_classifier, random_classes, samples
from modalities.evaluation.settings import EvaluationSettings
from modalities.metrics.base import Features, Framewise
from modalities.metrics.networks import NetworkConfig
from tests.modalities.evaluation_subjects import CLASSES, Memory, subject

FEW = EvaluationSettings(generated=24, heldout=24, training=30, batch=5, classifier_steps=5)


class Colours(nn.Module):
    """A stand-in for Inception: mean colours, quarters of the picture, logits."""

    name, kind, distance = "mean colours", "inception", "FID"

    def forward(self, media):
        pool = media.mean((2, 3))
        return Features(pool, media[:, :, ::4, ::4].flatten(1), 4 * pool)


def features(count: int, seed: int = 0, shift: float = 0.0) -> Features:
    draw = generator("features", seed)
    pool = torch.randn(count, 3, generator=draw) + shift
    return Features(pool, torch.randn(count, 5, generator=draw), pool)


def test_equal_sides_have_distance_0_and_full_marks():
    values, warnings = compare(Colours(), features(400), features(400), seed=0)
    assert values["FID"] == pytest.approx(0, abs=1e-6)
    assert values["sFID"] == pytest.approx(0, abs=1e-6)
    assert abs(values["KID"]) < 0.1
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    assert 1 <= values["IS"] <= 3
    assert warnings == []


def test_a_shift_shows_in_closed_form_and_few_samples_are_warned_of():
    values, _ = compare(Colours(), features(400), features(400, shift=2.0), seed=0)
    assert values["FID"] == pytest.approx(3 * 2.0**2, rel=1e-5)
    wide = Features(torch.randn(20, 30, generator=generator("wide")))
    _, (line,) = compare(Colours(), wide, wide, seed=0)
    assert line.startswith("FID: 20 samples for 30 features: the covariance lacks full rank")


def test_only_the_standard_inception_has_fid_and_is():
    network = Colours()
    network.kind, network.distance = "classifier", "FD (small classifier)"
    values, _ = compare(network, replace(features(50), spatial=None), replace(features(50), spatial=None), seed=0)
    assert set(values) == {
        "FD (small classifier)",
        "KID",
        "precision",
        "recall",
        "density",
        "coverage",
        "class score",
    }
    framewise, _ = compare(Framewise(Colours()), features(50), features(50), seed=0)
    assert {"framewise FID", "framewise sFID"} <= set(framewise)


def test_numbers_do_not_depend_on_the_batch_size():
    measured = {}
    for batch in (5, 24):
        warnings = []
        settings = replace(FEW, batch=batch)
        asked = subject(Memory("val", 40), Memory("train", 30))
        measured[batch] = samples(asked, settings, {"inception": Colours()}, warnings), warnings
    assert measured[5][0] == pytest.approx(measured[24][0], rel=1e-5)
    assert measured[5][1] == measured[24][1]
    assert {"samples/inception/FID", "samples/inception/sFID", "samples/inception/IS"} <= set(measured[5][0])


def test_as_many_samples_as_there_are_records_and_at_least_six():
    made = []
    asked = subject(Memory("val", 8), Memory("train", 30))
    samples(asked, FEW, {"inception": Colours()}, [], made.append)
    assert sum(made) == 8 * asked.sampler.steps
    with pytest.raises(DataError, match="5 held-out records to compare with; at least 6 are needed"):
        samples(subject(Memory("val", 5), Memory("train", 30)), FEW, {"inception": Colours()}, [])


def test_random_classes_are_uniform_and_only_of_label_runs():
    prompts = random_classes(subject(Memory("a", 9), Memory("b", 9)).model, 0, 4000)
    found = [prompt.text for prompt in prompts]
    assert set(found) == {*CLASSES, "purple"}
    assert 900 < found.count("red") < 1100
    assert prompts[:50] == random_classes(subject(Memory("a", 9), Memory("b", 9)).model, 0, 50)
    with pytest.raises(ConfigError, match="conditioned on text; use heldout"):
        random_classes(subject(Memory("a", 9), Memory("b", 9), kind="text").model, 0, 5)


def test_a_classifier_sees_training_records_only_is_kept_and_is_not_mistaken_for_another(tmp_path):
    heldout, training = Memory("val", 20), Memory("train", 30, strange={4})
    asked = subject(heldout, training)
    network = own_classifier(asked, FEW, tmp_path)
    assert heldout.reads == []
    assert sorted(training.reads) == list(range(30))
    assert network.name.startswith("small classifier trained on pictures in memory")
    (file,) = tmp_path.iterdir()
    again = own_classifier(subject(heldout, Memory("train", 30, strange={4})), FEW, tmp_path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in network.state_dict().items())
    assert [*tmp_path.iterdir()] == [file]
    for other, settings in ((Memory("train", 31), FEW), (training, replace(FEW, classifier_steps=6))):
        own_classifier(subject(heldout, other), settings, tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


def test_networks_of_one_kind_are_numbered(tmp_path):
    asked = subject(Memory("val", 20), Memory("train", 30))
    path = str(own_classifier(asked, FEW, tmp_path).save(tmp_path / "mine"))
    one, two = NetworkConfig(), NetworkConfig("classifier", path)
    assert list(feature_networks(asked, replace(FEW, networks=[one]), tmp_path, tmp_path)) == ["classifier"]
    both = feature_networks(asked, replace(FEW, networks=[one, two]), tmp_path, tmp_path)
    assert list(both) == ["classifier-1", "classifier-2"]
