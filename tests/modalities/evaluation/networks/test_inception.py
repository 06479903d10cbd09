import re

import pytest
import torch
from torch.nn import functional

from core.errors import CheckpointError, ShapeError
from core.keys import generator
from modalities.evaluation.networks.inception import Inception, InceptionGraph, resize_tf1


def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in InceptionGraph().state_dict().items()}


def weights() -> dict[str, torch.Tensor]:
    """Random weights under the published names, each from its name, at scales that keep activations near 1."""
    state = {}
    for name, shape in shapes().items():
        if name.endswith("num_batches_tracked"):
            continue
        value = torch.randn(shape, generator=generator("inception", name))
        if name.endswith("conv.weight"):
            value = value * (2 / value[0].numel()) ** 0.5
        elif name == "fc.weight":
            value = value * 0.02
        elif name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif name.endswith("bn.weight"):
            value = 1 + 0.1 * value
        else:
            value = 0.1 * value
        state[name] = value
    return state


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(weights(), path)
    return path


@pytest.fixture(scope="module")
def network(file):
    return Inception(str(file))


def pixels(height: int, width: int) -> torch.Tensor:
    """Two images as uint8 levels."""
    draw = generator("pixels", height, width)
    return torch.randint(0, 256, (2, 3, height, width), generator=draw, dtype=torch.uint8)


def test_the_names_are_those_of_the_published_files():
    names = shapes()
    assert len(names) == 94 * 6 + 2  # 94 convolutions with their norm (5 entries), and the classifier
    assert names["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert names["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert names["Mixed_6a.branch3x3.conv.weight"] == (384, 288, 3, 3)
    assert names["Mixed_6d.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert names["Mixed_7a.branch7x7x3_4.bn.running_mean"] == (192,)
    assert names["Mixed_7c.branch3x3dbl_3a.conv.weight"] == (384, 384, 1, 3)
    assert names["fc.weight"] == (1008, 2048)


def test_golden_features_of_torch_fidelity(network):
    """Of torch-fidelity 0.4.0's FeatureExtractorInceptionV3 with these weights, image 0; spatial from a hook on
    Mixed_6d.branch1x1, flattened (h, w, c); logits are its "logits_unbiased"."""
    features = network(pixels(32, 32).float() / 127.5 - 1)
    assert [tuple(value.shape) for value in (features.pool, features.spatial, features.logits)] == [
        (2, 2048),
        (2, 2023),
        (2, 1008),
    ]
    golden = {
        "pool": (256, [0.0077277, 0.8647578, 0.0, 0.0971656, 0.1281564, 0.7825611, 0.1198069, 0.3542314], 42.287598),
        "spatial": (256, [0.0, 0.38548, 0.0572582, 0.0, 0.0, 0.3075694, 0.0, 0.0], 23.209871),
        "logits": (126, [0.3158846, 1.092234, -0.4851059, -0.1713386, -0.9394144, -0.039022, -0.6037946], 26.880526),
    }
    for name, (stride, values, norm) in golden.items():
        found = getattr(features, name)
        torch.testing.assert_close(found[0, ::stride][: len(values)], torch.tensor(values), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found.norm(), torch.tensor(norm), atol=0, rtol=1e-5)


def test_logits_have_no_bias_and_spatial_is_the_first_branch_of_mixed_6d(network):
    seen = {}
    hook = network.graph.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: seen.update(out=out))
    features = network(pixels(40, 24).float() / 127.5 - 1)
    hook.remove()
    assert torch.equal(features.logits, features.pool @ network.graph.fc.weight.T)
    assert seen["out"].shape == (2, 192, 17, 17)
    by_place = features.spatial.view(2, 17, 17, 7)
    assert torch.equal(by_place[1, 3, 5], seen["out"][1, :7, 3, 5])
    assert seen["out"].min() == 0  # behind the ReLU, as the graph's op of that name


def test_the_resize_is_tensorflow_1s():
    """Doubling [0, 10, 20] samples inputs 0, .5, 1, 1.5, 2, 2 (clamped): neither half-pixel centers nor corners."""
    line = torch.tensor([0.0, 10.0, 20.0])[None, None, None].expand(1, 3, 3, 3)
    assert resize_tf1(line, 6)[0, 0, 0].tolist() == [0, 5, 10, 15, 20, 20]
    assert resize_tf1(line.transpose(2, 3), 6)[0, 0, :, 0].tolist() == [0, 5, 10, 15, 20, 20]
    assert functional.interpolate(line, (6, 6), mode="bilinear")[0, 0, 0].tolist() != [0, 5, 10, 15, 20, 20]
    big = pixels(400, 299)[:, :, :, :64].float()
    rows = resize_tf1(big, 200)
    assert torch.equal(rows[:, :, :, 0], big[:, :, ::2, 0])  # halving takes every second row, no antialiasing


def test_media_are_rounded_to_8_bits_first(network):
    levels = pixels(16, 16).float()
    nearly = ((levels + 0.4) / 127.5 - 1).clamp(-1, 1)
    assert torch.equal(network(nearly).pool, network(levels / 127.5 - 1).pool)


def test_it_is_frozen(network):
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())


def test_counts_of_batches_in_the_file_make_no_difference(network, tmp_path):
    counts = {name: torch.tensor(7) for name in shapes() if name.endswith("num_batches_tracked")}
    torch.save(weights() | counts, tmp_path / "with_counts.pth")
    again = Inception(str(tmp_path / "with_counts.pth"))
    media = pixels(8, 8).float() / 127.5 - 1
    assert torch.equal(again(media).pool, network(media).pool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fc.bias"), "1 of 472 entries differ, first fc.bias: missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "first extra: (1,), expected no such entry"),
        (lambda state: state.update({"fc.weight": torch.zeros(1000, 2048)}), "fc.weight: (1000, 2048), expected (1008"),
    ],
)
def test_other_weights_are_refused(tmp_path, change, message):
    state = weights()
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        Inception(str(tmp_path / "other.pth"))


def test_a_missing_or_foreign_file_says_what_to_put_there(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        Inception(str(tmp_path / "none.pth"))
    for part in ("none.pth", "no such file", "pt_inception-2015-12-05-6726825d.pth", "kind 'classifier'"):
        assert part in str(caught.value)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match="not a file of weights"):
        Inception(str(tmp_path / "text.pth"))


@pytest.mark.parametrize("media", [torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8)])
def test_other_shapes_are_refused(network, media):
    with pytest.raises(ShapeError, match=r"expected image \(B, 3, H, W\)"):
        network(media)


def test_values_that_are_not_finite_are_refused(network):
    with pytest.raises(ShapeError, match="not finite"):
        network(torch.full((1, 3, 8, 8), float("nan")))
