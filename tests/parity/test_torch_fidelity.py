"""Metrics against torch-fidelity's own functions: its Inception with random weights, and random features."""

import pytest
import torch

from core.evaluation.inception_score import inception_score
from core.evaluation.kernel import kernel_distance
from core.evaluation.manifold import precision_recall
from core.evaluation.statistics import FeatureStatistics, frechet_distance
from core.keys import generator
from modalities.evaluation.networks.inception import Inception
from tests.modalities.evaluation.networks.test_inception import pixels, weights

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed (extra `full`)")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Theirs and ours, from one file."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = str(tmp_path_factory.mktemp("inception") / "weights.pth")
    torch.save(weights(), path)
    theirs = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=path)
    return theirs, Inception(path)


@pytest.mark.parametrize("size", [(32, 32), (350, 64)])
def test_the_network_is_theirs_bit_for_bit(networks, size):
    theirs, ours = networks
    levels, inputs = pixels(*size), {}
    hook = theirs.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: inputs.update(out=out))
    with torch.inference_mode():
        pool, logits = theirs(levels)
    hook.remove()
    features = ours(levels.float() / 127.5 - 1)
    assert torch.equal(features.pool, pool)
    assert torch.equal(features.logits, logits)
    assert torch.equal(features.spatial, inputs["out"][:, :7].permute(0, 2, 3, 1).flatten(1))


def features(name: str, samples: int, width: int = 48) -> torch.Tensor:
    """(samples, width) float64, correlated, each set around a mean of its own."""
    draw = generator("torch-fidelity", name)
    mix = torch.randn(width, width, generator=draw, dtype=torch.float64) / width**0.5
    mean = 0.3 * torch.randn(width, generator=draw, dtype=torch.float64)
    return torch.randn(samples, width, generator=draw, dtype=torch.float64) @ mix + mean


def statistics(values: torch.Tensor) -> FeatureStatistics:
    found = FeatureStatistics()
    for part in values.split(37):
        found.update(part)
    return found


def test_frechet_distance():
    from torch_fidelity import metric_fid

    one, two = features("one", 400), features("two", 300)
    theirs = metric_fid.fid_statistics_to_metric(
        *(metric_fid.fid_features_to_statistics(values) for values in (one, two)), verbose=False
    )
    ours = frechet_distance(statistics(one), statistics(two))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


def test_inception_score():
    from torch_fidelity import metric_isc

    logits = features("logits", 205)
    theirs = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    ours = inception_score(logits.softmax(1), splits=10)
    assert ours == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-12)


def test_kernel_distance():
    """Of all samples at once, since the two draw different subsets."""
    from torch_fidelity import metric_kid

    one, two = features("one", 120), features("two", 120)
    theirs = metric_kid.kid_features_to_metric(one, two, kid_subsets=1, kid_subset_size=120, verbose=False)
    ours = kernel_distance(one, two, subsets=1, subset_size=120)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)


def test_precision_and_recall():
    from torch_fidelity import metric_prc

    real, generated = features("one", 150, width=3), features("two", 130, width=3)
    theirs = metric_prc.prc_features_to_metric(generated, real, prc_neighborhood=3, verbose=False)
    ours = precision_recall(real, generated, k=3)
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-7)  # theirs are float32
    assert 0.1 < ours.precision < 0.9
    assert 0.1 < ours.recall < 0.9
