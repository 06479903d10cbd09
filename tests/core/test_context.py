from dataclasses import replace

import pytest
import torch

from core.errors import ShapeError
from core.trunk.context import ContextConfig, ContextEmbed
from core.trunk.layers import initialize
from core.types import Context

KINDS = {
    "labels": ContextConfig(kind="labels", num_classes=5),
    "tokens": ContextConfig(kind="tokens", vocabulary=40, words=6),
    "features": ContextConfig(kind="features", feature_dim=10),
}


def embedder(kind: str) -> ContextEmbed:
    module = ContextEmbed(KINDS[kind], width=16, heads=2)
    initialize(module, 0, {"table": 0.5, "position": 0.5, "null": 0.5}, zero=())
    return module.double()


def context(kind: str, seed: int = 0, dropped=(False, True, False)) -> Context:
    draw = torch.Generator().manual_seed(seed)
    dropped = torch.tensor(dropped)
    if kind == "labels":
        return Context(dropped, label=torch.randint(0, 5, (3,), generator=draw))
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 2 + [False] * 3])
    if kind == "tokens":
        return Context(dropped, tokens=torch.randint(1, 40, (3, 5, 4), generator=draw), valid=valid)
    return Context(dropped, tokens=torch.randn(3, 5, 10, generator=draw), valid=valid)


def visible(module: ContextEmbed, conditioning_mask: Context, sample: int) -> torch.Tensor:
    """The tokens of one sample that the trunk may look at."""
    tokens, valid = module(conditioning_mask)
    return tokens[sample] if valid is None else tokens[sample][valid[sample]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_sample_is_the_null_token_whatever_its_content(kind):
    module = embedder(kind)
    dropped = visible(module, context(kind), 1)
    assert dropped.shape == (1, 16)
    assert torch.equal(dropped, visible(module, context(kind, seed=1), 1))
    assert torch.equal(dropped, visible(module, context(kind).drop_all(), 0))
    kept = context(kind, dropped=(False, False, False))
    assert not torch.equal(visible(module, kept, 1)[:1], dropped)


@pytest.mark.parametrize("kind", ["tokens", "features"])
def test_padding_content_is_never_read(kind):
    module, clean = embedder(kind), context(kind)
    hidden = ~clean.valid[..., None]
    dirty = replace(clean, tokens=clean.tokens.masked_fill(hidden, 7 if kind == "tokens" else float("nan")))
    for sample in range(3):
        assert torch.equal(visible(module, clean, sample), visible(module, dirty, sample))


def test_bags_are_sums_of_rows_without_row_zero():
    module = ContextEmbed(replace(KINDS["tokens"], encoder_depth=0), width=16, heads=2)
    initialize(module, 0, {"table": 0.5, "position": 0.5, "null": 0.5}, zero=())
    tokens = torch.tensor([[[3, 9, 0, 0], [5, 5, 2, 0]]])
    result, valid = module(Context(torch.tensor([False]), tokens=tokens, valid=torch.ones(1, 2, dtype=torch.bool)))
    table, position = module.reader.table.weight, module.reader.position
    expected = torch.stack([table[3] + table[9] + position[0], 2 * table[5] + table[2] + position[1]])
    torch.testing.assert_close(result[0], expected)
    assert valid.all()


def test_the_encoder_reads_the_order_of_words():
    module, conditioning_mask = embedder("tokens"), context("tokens", dropped=(False, False, False))
    swapped = replace(conditioning_mask, tokens=conditioning_mask.tokens[:, [1, 0, 2, 3, 4]])
    # The last word is the same, and sees that the first two changed places.
    assert not torch.allclose(visible(module, conditioning_mask, 0)[-1], visible(module, swapped, 0)[-1], atol=1e-6)


@pytest.mark.parametrize("kind", ["tokens", "features"])
def test_an_empty_text_stays_finite(kind):
    module, conditioning_mask = embedder(kind), context(kind, dropped=(False, False, False))
    conditioning_mask = replace(conditioning_mask, valid=torch.zeros_like(conditioning_mask.valid))
    tokens, valid = module(conditioning_mask)
    assert torch.isfinite(tokens).all()
    assert valid.sum(dim=1).tolist() == [1, 1, 1]


def test_wrong_contexts_are_refused():
    with pytest.raises(ShapeError, match="label: needed"):
        embedder("labels")(context("tokens"))
    with pytest.raises(ShapeError, match=r"`tokens` needs integer rows, got torch\.float32"):
        embedder("tokens")(context("features"))
    with pytest.raises(ShapeError, match="`features` needs floating-point features, got None"):
        embedder("features")(context("labels"))
    long = Context(
        torch.zeros(1, dtype=torch.bool),
        tokens=torch.ones(1, 7, 2, dtype=torch.long),
        valid=torch.ones(1, 7, dtype=torch.bool),
    )
    with pytest.raises(ShapeError, match="7 words, but this trunk reads at most 6"):
        embedder("tokens")(long)


def test_config_problems():
    assert all(config.problems() == [] for config in KINDS.values())
    assert "Did you mean: 'labels'" in ContextConfig(kind="lables").problems()[0]
    problems = ContextConfig(num_classes=0, words=-1).problems()
    assert [line.split(":")[0] for line in problems] == ["num_classes", "words"]
