import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from core.errors import ConfigError, ShapeError
from core.trunk.context import ContextConfig
from core.trunk.layers import sinusoid
from core.trunk.mmdit import TEXT_TIMES, MMDiT, MMDiTConfig
from core.trunk.projectors import ProjectorSpec
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch
from tests.core.test_rope import complex_rotation

CHANNELS = {"video": 6, "action": 3}
HEADS = {"teacher": ProjectorSpec()}
LENGTHS = (7, 4)
B, L, S = 3, sum(LENGTHS), 5


def config(**changes) -> MMDiTConfig:
    context = ContextConfig(kind="tokens", vocabulary=30, words=S)
    shape = {"size": "tiny", "width": 32, "heads": 2, "double_blocks": 2, "single_blocks": 3, "mlp_ratio": 2.0}
    base = MMDiTConfig(**shape, channels=CHANNELS, context=context)
    return replace(base, **changes)


def trunk(projectors=HEADS, **changes) -> MMDiT:
    """A float64 trunk without zeros, so that every path is felt."""
    net = MMDiT(config(**changes), projectors=projectors)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return net.double()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_context(dropped=(False, True, False)) -> Context:
    tokens = torch.randint(1, 30, (B, S, 3), generator=torch.Generator().manual_seed(3))
    valid = torch.arange(S) < torch.tensor([[5], [4], [2]])
    return Context(torch.tensor(dropped), tokens=tokens, valid=valid)


def two_segments(padded: bool = False, conditioning_mask: bool = False) -> tuple[tuple[torch.Tensor, ...], TokenBatch]:
    """A video and its actions: other channels, other lengths, ids shared by the batch in one and not in the other."""
    noisy = tuple(random(B, n, c, seed=n).double() for n, c in zip(LENGTHS, CHANNELS.values(), strict=True))
    ids = [torch.randint(0, 9, (samples, n, 3), generator=torch.Generator().manual_seed(n)) for samples, n in
           zip((1, B), LENGTHS, strict=True)]  # fmt: skip
    valid = [torch.arange(n) < torch.tensor([[n], [n - 1], [n - 2]]) if padded else None for n in LENGTHS]
    first = torch.zeros(B, LENGTHS[0], dtype=torch.bool)
    first[:, :2] = True
    segments = (
        Segment("video", noisy[0].float(), ids[0], valid[0], first if conditioning_mask else None),
        Segment("action", noisy[1].float(), ids[1], valid[1]),
    )
    return noisy, TokenBatch(segments, text_context())


def dual_levels(seed: int = 5) -> NoiseLevels:
    draw = torch.Generator().manual_seed(seed)
    return NoiseLevels(torch.rand(B, 2, generator=draw), torch.randint(0, 2, (B, L), generator=draw))


# The reference: one sample at a time, one modulation per token, padding cut out instead of masked, softmax written
# out, rotation by complex numbers. It shares no code with the trunk but the float32 sinusoid and the context reader.


def reference(net: MMDiT, noisy, levels: NoiseLevels, batch: TokenBatch, sample: int, text_time="mean_embedding"):
    """(velocity (kept tokens, C) per segment, [(kept tokens, D) after each block]) of one sample."""
    w, heads, width = net.state_dict(), net.heads, net.width

    def embed(level):
        h = sinusoid(level[None].float() * 1000, 256).double()
        h = F.silu(h @ w["time.mlp.0.weight"].T + w["time.mlp.0.bias"])
        return (h @ w["time.mlp.2.weight"].T + w["time.mlp.2.bias"])[0]

    def norm(x):
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt()

    def swiglu(x, prefix):
        gate, value = (w[f"{prefix}linear1.weight"] @ x).chunk(2)
        return w[f"{prefix}linear2.weight"] @ (F.silu(gate) * value)

    def heads_of(qkv, scale):
        q, k, v = (part.view(heads, -1) for part in qkv.chunk(3))
        scales = scale.chunk(2)
        q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * s for x, s in zip((q, k), scales, strict=True))
        return q, k, v

    def attention(qkv, ids):
        q, k, v = (torch.stack([token[i] for token in qkv]) for i in range(3))  # (T, H, d)
        q, k = (complex_rotation(x[None, :, None], ids[None], net.rope_axes, 2000.0)[0, :, 0] for x in (q, k))
        outputs = []
        for query in q:
            scores = (query * k).sum(-1) / math.sqrt(q.shape[-1])  # (T, H)
            outputs.append((scores.softmax(0)[..., None] * v).sum(0).flatten())
        return outputs

    def stream_qkv(x, mod, prefix):
        h = norm(x) * (1 + mod[1]) + mod[0]
        return heads_of(w[f"{prefix}qkv.weight"] @ h + w[f"{prefix}qkv.bias"], w[f"{prefix}norm.scale"])

    def stream_finish(x, attended, mod, prefix):
        x = x + mod[2] * (w[f"{prefix}attention_out.weight"] @ attended)
        return x + mod[5] * swiglu(norm(x) * (1 + mod[4]) + mod[3], f"{prefix}mlp.")

    kept = [torch.ones(n, dtype=torch.bool) if s.valid is None else s.valid[sample] for n, s in
            zip(batch.lengths, batch.segments, strict=True)]  # fmt: skip
    media, ids = [], []
    for x, keep, segment in zip(noisy, kept, batch.segments, strict=True):
        name = f"media_in.{segment.modality}"
        media += [w[f"{name}.weight"] @ token + w[f"{name}.bias"] for token in x[sample][keep]]
        ids.append(segment.ids[min(sample, segment.ids.shape[0] - 1)][keep])
    text, text_valid = net.context(batch.context)
    text = list(text[sample][text_valid[sample]])
    ids = torch.cat([torch.zeros(len(text), 3, dtype=torch.long), *ids])
    token_levels = levels.per_token(L)[sample][torch.cat(kept)]
    times = [embed(level) for level in token_levels]
    loss_mask = batch.loss_mask()[sample][torch.cat(kept)]
    text_vec = {
        "mean_embedding": lambda: torch.stack(times)[loss_mask].mean(0),
        "t": lambda: embed(levels.values[sample, 0]),
        "min": lambda: embed(token_levels[loss_mask].min()),
        "mean_level": lambda: embed(token_levels[loss_mask].mean()),
    }[text_time]()

    def modulation(vec, name, parts):
        return (w[f"{name}.weight"] @ F.silu(vec)).chunk(parts)

    features = []
    media_mod = [modulation(vec, "media_modulation.linear", 6) for vec in times]
    text_mod = modulation(text_vec, "text_modulation.linear", 6)
    for block in range(len(net.double_blocks)):
        p = f"double_blocks.{block}."
        qkv = [stream_qkv(x, text_mod, p + "text.") for x in text]
        qkv += [stream_qkv(x, mod, p + "media.") for x, mod in zip(media, media_mod, strict=True)]
        attended = attention(qkv, ids)
        text = [stream_finish(x, a, text_mod, p + "text.") for x, a in zip(text, attended[: len(text)], strict=True)]
        rest = zip(media, attended[len(text) :], media_mod, strict=True)
        media = [stream_finish(x, a, mod, p + "media.") for x, a, mod in rest]
        features.append(torch.stack(media))

    tokens = text + media
    mods = [modulation(vec, "single_modulation.linear", 3) for vec in [text_vec] * len(text) + times]
    for block in range(len(net.single_blocks)):
        p = f"single_blocks.{block}."
        fused = [w[p + "linear1.weight"] @ (norm(x) * (1 + m[1]) + m[0]) for x, m in zip(tokens, mods, strict=True)]
        qkv = [heads_of(f[: 3 * width] + w[p + "qkv_bias"], w[p + "norm.scale"]) for f in fused]
        updated = []
        for x, a, f, m in zip(tokens, attention(qkv, ids), fused, mods, strict=True):
            gate, value = f[3 * width :].chunk(2)
            updated.append(x + m[2] * (w[p + "linear2.weight"] @ torch.cat([a, F.silu(gate) * value])))
        tokens = updated
        features.append(torch.stack(tokens[len(text) :]))

    final = [modulation(vec, "final_modulation", 2) for vec in times]
    out = [norm(x) * (1 + m[1]) + m[0] for x, m in zip(tokens[len(text) :], final, strict=True)]
    velocities, start = [], 0
    for keep, segment in zip(kept, batch.segments, strict=True):
        name, count = f"media_out.{segment.modality}", int(keep.sum())
        part = torch.stack(out[start : start + count])
        velocities.append(part @ w[f"{name}.weight"].T + w[f"{name}.bias"])
        start += count
    return velocities, features


# Means over tokens are float32, and the mean level passes the float32 sinusoid, which magnifies it by 1000.
TOLERANCE = {"t": 1e-9, "min": 1e-9, "mean_embedding": 1e-7, "mean_level": 1e-4}


@torch.no_grad()
@pytest.mark.parametrize("text_time", TEXT_TIMES)
@pytest.mark.parametrize(("padded", "conditioning_mask"), [(False, False), (True, False), (True, True)])
def test_the_whole_net_equals_the_reference_in_float64(padded, conditioning_mask, text_time):
    net = trunk(text_time=text_time)
    noisy, batch = two_segments(padded, conditioning_mask)
    levels = dual_levels()
    output = net(noisy, levels, batch, FeatureLayers(raw=tuple(range(1, net.depth + 1))))
    valid = torch.ones(B, L, dtype=torch.bool)
    if padded:
        valid = torch.cat([segment.valid for segment in batch.segments], 1)
    for sample in range(B):
        velocities, features = reference(net, noisy, levels, batch, sample, text_time)
        for layer, expected in enumerate(features, start=1):
            torch.testing.assert_close(
                output.raw[layer][sample][valid[sample]], expected, atol=TOLERANCE[text_time], rtol=0
            )
        for got, keep, expected in zip(output.velocity, valid.split(list(LENGTHS), dim=1), velocities, strict=True):
            torch.testing.assert_close(got[sample][keep[sample]], expected, atol=TOLERANCE[text_time], rtol=0)


@torch.no_grad()
def test_one_shared_level_equals_the_reference_and_every_text_time():
    noisy, batch = two_segments()
    levels = NoiseLevels(torch.tensor([[0.1], [0.5], [0.9]]))
    expected = [reference(trunk(), noisy, levels, batch, sample)[0] for sample in range(B)]
    indexed = NoiseLevels(levels.values, torch.zeros(B, L, dtype=torch.long))
    for text_time in TEXT_TIMES:
        net = trunk(text_time=text_time)
        for conditioning_mask in (levels, indexed):
            for segment, got in enumerate(net(noisy, conditioning_mask, batch).velocity):
                wanted = torch.stack([velocities[segment] for velocities in expected])
                torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)


@torch.no_grad()
def test_distinct_levels_expanded_equal_one_level_per_token():
    net, (noisy, batch), levels = trunk(), two_segments(), dual_levels()
    every = NoiseLevels(levels.per_token(L), torch.arange(L).expand(B, L))
    assert every.values.shape[1] > 8  # the other way of expanding
    for a, b in zip(net(noisy, levels, batch).velocity, net(noisy, every, batch).velocity, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=0)


@torch.no_grad()
def test_padding_has_no_influence():
    net, (noisy, batch), levels = trunk(), two_segments(padded=True), dual_levels()
    valid = [segment.valid for segment in batch.segments]
    changed = tuple(x.masked_fill(~keep[..., None], 50.0) for x, keep in zip(noisy, valid, strict=True))
    segments = tuple(replace(s, ids=s.ids.expand(B, -1, -1) + 9 * ~s.valid[..., None]) for s in batch.segments)
    words = batch.context.tokens.masked_fill(~batch.context.valid[..., None], 29)
    other = TokenBatch(segments, replace(batch.context, tokens=words))
    flipped = NoiseLevels(levels.values, torch.where(torch.cat(valid, 1), levels.index, 1 - levels.index))
    before, after = net(noisy, levels, batch).velocity, net(changed, flipped, other).velocity
    for a, b, keep in zip(before, after, valid, strict=True):
        torch.testing.assert_close(a[keep], b[keep], atol=1e-12, rtol=0)
        assert not torch.allclose(a[~keep], b[~keep])


@torch.no_grad()
@pytest.mark.parametrize("separate", [False, True])
def test_padding_of_text_features_has_no_influence(separate):
    """Neither its content nor its length, for kept and dropped samples alike, also where groups attend apart."""
    net = trunk(context=ContextConfig(kind="features", feature_dim=10))
    noisy, batch = two_segments()
    levels = dual_levels()
    if separate:
        index = (torch.arange(L) < 5).long().expand(B, -1)
        levels = NoiseLevels(levels.values[:, :2], index, separate=(L - 5, 5))
    valid = torch.arange(S) < torch.tensor([[S], [3], [1]])
    short = Context(torch.tensor([False, False, False]), tokens=random(B, S, 10), valid=valid)
    long = replace(
        short,
        tokens=torch.cat([short.tokens.masked_fill(~valid[..., None], float("nan")), random(B, 6, 10) * 1e6], dim=1),
        valid=torch.cat([valid, torch.zeros(B, 6, dtype=torch.bool)], dim=1),
    )
    for change in (lambda c: c, Context.drop_all, lambda c: replace(c, dropped=torch.tensor([True, False, False]))):
        before, after = (net(noisy, levels, replace(batch, context=change(c))).velocity for c in (short, long))
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    seen = replace(long, valid=torch.ones_like(long.valid), tokens=long.tokens.nan_to_num(0.5))
    assert not torch.allclose(net(noisy, levels, replace(batch, context=seen)).velocity[0], before[0], atol=1e-3)


@torch.no_grad()
def test_permuting_tokens_with_their_ids_and_levels_permutes_the_output():
    net = trunk()
    x, ids = random(B, L, 6).double(), torch.randint(0, 9, (1, L, 3))
    order, levels = torch.randperm(L), dual_levels()
    plain = TokenBatch((Segment("video", x.float(), ids),), text_context())
    mixed = TokenBatch((Segment("video", x.float(), ids[:, order]),), text_context())
    before = net((x,), levels, plain).velocity[0]
    after = net((x[:, order],), NoiseLevels(levels.values, levels.index[:, order]), mixed).velocity[0]
    torch.testing.assert_close(after, before[:, order], atol=1e-11, rtol=0)
    assert not torch.allclose(net((x[:, order],), levels, plain).velocity[0], before[:, order], atol=1e-3)


@torch.no_grad()
def test_a_dropped_context_is_the_null_whatever_its_content():
    net, (noisy, batch), levels = trunk(), two_segments(), dual_levels()
    words = batch.context.tokens.flip(0)
    other = TokenBatch(batch.segments, replace(batch.context, tokens=words, valid=batch.context.valid.flip(0)))
    first, second = net(noisy, levels, batch).velocity[0], net(noisy, levels, other).velocity[0]
    assert torch.equal(first[1], second[1])  # sample 1 is dropped
    assert not torch.allclose(first[0], second[0], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2, 3, 4, 5])
def test_an_early_exit_gives_the_features_of_the_whole_run(layer):
    net, (noisy, batch), levels = trunk(), two_segments(), dual_levels()
    whole = net(noisy, levels, batch, FeatureLayers(raw=(1, layer), projected={"teacher": layer}))
    early = net(noisy, levels, batch, FeatureLayers(raw=(1, layer), projected={"teacher": layer}, stop_after=layer))
    assert early.velocity is None
    assert whole.velocity is not None
    assert early.raw.keys() == {1, layer}
    assert early.raw[layer].shape == (B, L, net.width)
    assert torch.equal(early.raw[layer], whole.raw[layer])
    assert torch.equal(early.projected["teacher"], whole.projected["teacher"])
    torch.testing.assert_close(early.projected["teacher"], net.projector(early.raw[layer]))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", ["tokens", "labels"])
def test_every_parameter_gets_a_gradient(kind, aligned):
    """adaLN-Zero opens in stages: output layers, modulations, what lies behind media gates, and behind text gates."""
    changes, context = {}, text_context()
    if kind == "labels":
        changes = {"context": ContextConfig(kind="labels", num_classes=4)}
        context = Context(torch.tensor([False, True, False]), label=torch.tensor([1, 2, 3]))
    net = MMDiT(config(**changes), projectors=HEADS if aligned else {})
    noisy, batch = two_segments()
    batch, noisy = TokenBatch(batch.segments, context), tuple(x.float() for x in noisy)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    reached = []
    for _ in range(4):
        optimizer.zero_grad()
        output = net(noisy, dual_levels(), batch, FeatureLayers(projected={"teacher": 2} if aligned else {}))
        loss = sum((v - 1).square().mean() for v in output.velocity)
        loss = loss + sum(feature.square().mean() for feature in output.projected.values())
        loss.backward()
        reached.append({n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
        optimizer.step()
    assert {"media_out.video.weight", "media_out.action.weight"} <= reached[0]
    assert {"media_modulation.linear.weight", "single_modulation.linear.weight", "media_in.video.weight"} <= reached[1]
    assert {name for name, _ in net.named_parameters()} - reached[3] == set()


@torch.no_grad()
def test_a_new_trunk_answers_zero_and_is_a_function_of_its_seed():
    noisy, batch = two_segments()
    net = MMDiT(config(), seed=3)
    output = net(tuple(x.float() for x in noisy), dual_levels(), batch, FeatureLayers(raw=(1, 5)))
    assert all(v.dtype == torch.float32 and not v.any() for v in output.velocity)
    assert torch.equal(output.raw[1], output.raw[5])  # closed gates: blocks are the identity
    same, other = MMDiT(config(), seed=3).state_dict(), MMDiT(config(), seed=4).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in net.state_dict().items())
    assert not torch.equal(net.state_dict()["time.mlp.0.weight"], other["time.mlp.0.weight"])
    # More modalities change nothing else.
    wider = MMDiT(config(channels={**CHANNELS, "audio": 5}), seed=3).state_dict()
    assert all(torch.equal(value, wider[name]) for name, value in net.state_dict().items())


@torch.no_grad()
def test_bfloat16_weights_and_autocast_stay_close_and_return_float32():
    noisy, batch = two_segments(padded=True)
    net = trunk().float()
    noisy = tuple(x.float() for x in noisy)
    exact = net(noisy, dual_levels(), batch).velocity
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = net(noisy, dual_levels(), batch).velocity
    low = net.bfloat16()(noisy, dual_levels(), batch).velocity
    for got in (autocast, low):
        for a, b in zip(got, exact, strict=True):
            assert a.dtype == torch.float32
            assert 0 < (a - b).norm() / b.norm() < 0.05


def test_it_is_one_graph_for_the_compiler():
    net, (noisy, batch), levels = trunk(), two_segments(padded=True), dual_levels()
    feature_layers = FeatureLayers(raw=(1,), projected={"teacher": 2})
    plain = net(noisy, levels, batch, feature_layers)
    compiled = torch.compile(net, backend="eager", fullgraph=True)(noisy, levels, batch, feature_layers)
    for a, b in zip(plain.velocity, compiled.velocity, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


# Millions of parameters: paper_facts' fits with features of three layers of a 4B text encoder, and of width 4096.
@pytest.mark.parametrize(
    ("size", "features", "millions", "tolerance", "depth"),
    [
        ("290M", 7680, 288, 0.01, 8),
        ("420M", 7680, 415, 0.01, 14),
        ("625M", 7680, 627.7, 0.005, 21),
        ("1B", 7680, 1008, 0.01, 28),
        ("625M", 4096, 623.6, 0.005, 21),
    ],
)
def test_parameter_counts(size, features, millions, tolerance, depth):
    context = ContextConfig(kind="features", feature_dim=features)
    with torch.device("meta"):
        net = MMDiT(MMDiTConfig(size=size, channels={"image": 128}, context=context))
    count = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert abs(count / millions - 1) < tolerance, count
    assert net.depth == depth
    assert net.rope_axes == (24, 24, 24)
    assert net.width // net.heads == 72


def test_wrong_inputs_are_refused():
    net, (noisy, batch), levels = trunk(), two_segments(), dual_levels()
    with pytest.raises(ShapeError, match="one tensor per segment, 2, got 1"):
        net(noisy[:1], levels, batch)
    with pytest.raises(ShapeError, match=r"noisy action: expected \(3, 4, 3\), got \(3, 4, 5\)"):
        net((noisy[0], random(B, 4, 5)), levels, batch)
    with pytest.raises(ShapeError, match=r"'vidoe': this trunk has video, action\. Did you mean: 'video'"):
        net(noisy, levels, replace(batch, segments=(replace(batch.segments[0], modality="vidoe"), batch.segments[1])))
    with pytest.raises(ConfigError, match=r"layer 6 is outside 1\.\.5"):
        net(noisy, levels, batch, FeatureLayers(raw=(6,)))
    with pytest.raises(ConfigError, match="projector 'teacher' is not one of the trunk's: none"):
        trunk(projectors={})(noisy, levels, batch, FeatureLayers(projected={"teacher": 2}))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"size": "625m"}, "size: '625m' is not one of tiny, 290M, 420M, 625M, 1B. Did you mean: '625M'?"),
        ({"heads": 5}, "width: 32 is not a multiple of heads, 5"),
        ({"heads": 8}, "heads: 8 gives heads of 4 channels; needed is an even number from 6"),
        ({"single_blocks": 0}, "single_blocks: 0 must be at least 1"),
        ({"rope_axes": [4, 4, 4]}, "rope_axes: [4, 4, 4] must be 3 even numbers from 2 that sum to 16"),
        ({"channels": {}}, "channels: empty; name the latent channels of at least one modality, {modality: C}"),
        ({"channels": {"a.b": 1}}, "channels: modality 'a.b' must be a plain name (letters, digits, underscore)"),
        ({"rope_theta": 0.0}, "rope_theta: 0.0 must be above 0"),
        ({"text_time": "mean"}, "text_time: 'mean' is not one of mean_embedding, t, min, mean_level."),
        ({"attention": "flash"}, "attention: 'flash' is not one of sdpa, xformers."),
        ({"context": ContextConfig(words=0)}, "context.words: 0 is below 1, the smallest allowed"),
    ],
)
def test_config_problems_are_named(changes, line):
    assert config().problems() == []
    problems = config(**changes).problems()
    assert len(problems) == 1
    assert problems[0].startswith(line)
    with pytest.raises(ConfigError):
        MMDiT(config(**changes))


OTHER = {"qk_norm": False, "qkv_bias": False, "rope_theta": 100.0, "pos_embed": True, "rope_axes": [8, 4, 4]}


@torch.no_grad()
@pytest.mark.parametrize(("name", "value"), [*OTHER.items(), ("time_scale", 1.0)])
def test_every_option_is_read(name, value):
    noisy, batch = two_segments()
    plain, other = trunk(), trunk(**{name: value})
    other.load_state_dict(plain.state_dict(), strict=False)  # the same weights, as far as both have them
    for parameter in (p for key, p in plain.named_parameters() if key not in other.state_dict()):
        assert parameter.ndim == 1
    before, after = (net(noisy, dual_levels(), batch).velocity[0] for net in (plain, other))
    assert not torch.allclose(before, after)


@torch.no_grad()
def test_text_times_differ_under_two_levels():
    noisy, batch = two_segments()
    answers = [trunk(text_time=name)(noisy, dual_levels(), batch).velocity[0] for name in TEXT_TIMES]
    for i, a in enumerate(answers):
        assert all((a - b).abs().max() > 1e-3 for b in answers[:i])
