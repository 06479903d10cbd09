"""SiT, REPA, SRA and RAE weights against outputs of the original classes, and how the kinds are told apart.

fixtures/foreign_tiny.safetensors: width 16, depth 2, 2 heads, MLP ratio 2, four tokens of 2 x 2 x 4, 4 classes and the
null class. The three SiT models share all weights under `shared.`; their own ones are under `sit.`, `repa.` and `sra.`.
"""

import argparse
import math

import pytest
import torch

from core.errors import CheckpointError, ConfigError
from core.trunk.ddt import DDT, DDTConfig
from core.trunk.foreign import KINDS, detect, export_weights, import_weights, load_sit, read_file, read_state_dict
from core.trunk.foreign.conversions import TIME, turn_time
from core.trunk.foreign.files import WeightFile
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.trunk.sit import SiT, SiTConfig
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch
from tests.parity.common import golden, worst

IDS = torch.tensor([[[0, i // 2, i % 2] for i in range(4)]])
DINO, SIGLIP = 12, 20  # widths of the two encoders that the REPA model was made for
WIDTH, HIDDEN = 16, 2048


@pytest.fixture(scope="module")
def values():
    return golden("foreign_tiny")


def repa_projectors():
    """The weights of REPA's projectors in the fixture, which are too large to be stored."""
    state = {}
    for index, out in enumerate((DINO, SIGLIP)):
        for layer, (rows, columns) in {0: (HIDDEN, WIDTH), 2: (HIDDEN, HIDDEN), 4: (out, HIDDEN)}.items():
            for name, shape in (("weight", (rows, columns)), ("bias", (rows,))):
                full = f"projectors.{index}.{layer}.{name}"
                k = torch.arange(math.prod(shape), dtype=torch.float64)
                scale = math.sqrt(columns if name == "weight" else 4)
                state[full] = (torch.sin(0.37 * k + len(full)) / scale).float().reshape(shape)
    return state


def original(values, kind):
    """The state dict as the original class has it."""
    parts = [f"{kind}.out", f"{kind}.z0", f"{kind}.z1", f"{kind}.head"]
    state = {name.removeprefix("shared."): v for name, v in values.items() if name.startswith("shared.")}
    own = {n.removeprefix(f"{kind}."): v for n, v in values.items() if n.startswith(f"{kind}.") and n not in parts}
    return state | own | (repa_projectors() if kind == "repa" else {})


def saved(path, state, **more):
    """A file like those of the original training scripts."""
    trained = {name: value + 1 for name, value in state.items()}
    torch.save({"model": trained, "ema": state, "opt": {"state": {}, "param_groups": []}, **more}, path)
    return path


def tokens(x):
    """(B, 4, 4, 4) latents -> (B, 4, 16) tokens (c p1 p2)."""
    return x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(len(x), 4, 16)


@torch.no_grad()
def run(trunk, values, noise, projected=()):
    """Output of a trunk at noise levels (B,)."""
    x = tokens(values["x"])
    batch = TokenBatch((Segment("image", x, IDS),), Context(torch.zeros(3, dtype=torch.bool), values["y"]))
    return trunk.eval()((x,), NoiseLevels(noise[:, None]), batch, FeatureLayers(projected=dict.fromkeys(projected, 1)))


def test_sit_knows_time_the_other_way_round(tmp_path, values):
    trunk = load_sit(saved(tmp_path / "sit.pt", original(values, "sit")), heads=2)
    velocity = run(trunk, values, 1 - values["t"]).velocity[0]
    assert trunk.config.learn_sigma
    assert worst(-velocity, tokens(values["sit.out"])) < 1e-5


def test_repa_velocity_and_projectors(tmp_path, values):
    trunk = load_sit(saved(tmp_path / "repa.pt", original(values, "repa")), heads=2, projectors=["dino", "siglip"])
    output = run(trunk, values, values["t"], ["dino", "siglip"])
    assert not trunk.config.learn_sigma
    assert worst(output.velocity[0], tokens(values["repa.out"])) < 1e-5
    assert worst(output.projected["dino"], values["repa.z0"]) < 1e-5
    assert worst(output.projected["siglip"], values["repa.z1"]) < 1e-5


def test_sra_velocity_and_head(tmp_path, values):
    trunk = load_sit(saved(tmp_path / "sra.pt", original(values, "sra")), heads=2)
    output = run(trunk, values, values["t"], [TEACHER])
    assert worst(output.velocity[0], tokens(values["sra.out"])) < 1e-5
    assert worst(output.projected[TEACHER], values["sra.head"]) < 1e-5


def test_rae_needs_no_conversion(tmp_path):
    """`{"ema": ...}` as its training script saves it; fixtures/rae_ddt_tiny.safetensors."""
    golden_rae = golden("rae_ddt_tiny")
    state = {name.removeprefix("param."): v for name, v in golden_rae.items() if name.startswith("param.")}
    shape = {"width": 32, "depth": 2, "heads": 2, "head_width": 48, "head_depth": 1, "head_heads": 2}
    trunk = DDT(DDTConfig(**shape, grid=4, channels=6, num_classes=11)).eval()
    assert import_weights(trunk, read_file(saved(tmp_path / "rae.pt", state, scheduler=None, step=3))) == "rae"
    x, label = golden_rae["x"].flatten(2).transpose(1, 2), golden_rae["y"]  # (B, 16, 6)
    ids = torch.tensor([[[0, i // 4, i % 4] for i in range(16)]])
    batch = TokenBatch((Segment("image", x, ids),), Context(torch.zeros(len(x), dtype=torch.bool), label))
    with torch.no_grad():
        velocity = trunk((x,), NoiseLevels(golden_rae["t"][:, None]), batch).velocity[0]
    assert worst(velocity.transpose(1, 2), golden_rae["out"].flatten(2)) < 1e-5


def test_the_turned_time_is_exact_in_float64():
    """W [cos t, sin t] = turned W [cos (1 - t), sin (1 - t)], and turning twice gives W back."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 256, generator=draw, dtype=torch.float64)
    state = {TIME: weight, "final_layer.linear.weight": torch.ones(2, 2), "final_layer.linear.bias": torch.ones(2)}
    turned = turn_time(state)
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(128, dtype=torch.float32) / 128).double()

    def features(t):
        return torch.cat([torch.cos(t * frequencies), torch.sin(t * frequencies)])

    for t in (0.0, 0.3, 1.0):
        assert worst(weight @ features(t), turned[TIME] @ features(1 - t)) < 1e-13
    assert torch.equal(turned["final_layer.linear.weight"], -torch.ones(2, 2))
    assert worst(turn_time(turned)[TIME], weight) < 1e-14


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["sit", "repa", "sra"])
def test_there_and_back(tmp_path, values, kind, suffix):
    """Byte-identical, but for the one tensor that is rotated, which is the same to its rounding."""
    state = original(values, kind)
    trunk = load_sit(saved(tmp_path / "in.pt", state), heads=2)
    path = tmp_path / f"out{suffix}"
    export_weights(trunk, trunk.state_dict(), path, kind)
    back = read_state_dict(path)
    assert back.keys() == state.keys()
    turned = back.pop(TIME)
    assert worst(turned, state[TIME]) <= (0 if kind == "sit" else 1e-7)
    assert all(value.numpy().tobytes() == state[name].numpy().tobytes() for name, value in back.items())
    if suffix == ".pt":  # where their scripts look for it
        assert list(torch.load(path, weights_only=True)) == ["ema"]


def tiny_ddt(**projectors):
    shape = {"width": 8, "depth": 1, "heads": 1, "head_width": 12, "head_depth": 1, "head_heads": 1}
    return DDT(DDTConfig(**shape, grid=2, channels=4, num_classes=3), 5, projectors)


def tiny_mmdit():
    settings = {"width": 24, "heads": 2, "double_blocks": 1, "single_blocks": 1, "channels": {"image": 4}}
    return MMDiT(MMDiTConfig(size="tiny", **settings), 5, {TEACHER: ProjectorSpec()})


def tiny_sit(projectors=None, **settings):
    shape = {"size": "S", "width": 16, "depth": 2, "heads": 2, "grid": 2, "channels": 16, "num_classes": 5}
    return SiT(SiTConfig(**shape, mlp_ratio=2.0, **settings), 5, projectors or {})


@pytest.mark.parametrize(
    ("trunk", "kind"),
    [
        (tiny_ddt(), "rae"),
        (tiny_ddt(teacher=ProjectorSpec()), "native-ddt"),
        (tiny_mmdit(), "native-mmdit"),
        (tiny_sit(), "native-sit"),
        (tiny_sit({TEACHER: ProjectorSpec()}), "selfflow"),
        (tiny_sit({TEACHER: ProjectorSpec(), "image_dinov2": ProjectorSpec("repa", 3)}), "native-sit"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_kinds_without_a_conversion(tmp_path, trunk, kind, suffix):
    path = tmp_path / f"weights{suffix}"
    state = trunk.state_dict()
    export_weights(trunk, state, path, kind)
    file = read_file(path)
    assert detect(file.state, file.source) == kind
    assert file.state.keys() == state.keys()
    assert all(file.state[name].numpy().tobytes() == value.numpy().tobytes() for name, value in state.items())
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.zero_()
    assert import_weights(trunk, file) == kind
    assert all(torch.equal(value, file.state[name]) for name, value in trunk.state_dict().items())


def test_a_plain_head_without_projectors_is_ambiguous(values):
    state = {name: value for name, value in original(values, "sra").items() if not name.startswith("ap_head")}
    with pytest.raises(CheckpointError, match=r"(?s)several kinds.*sit: .*sra: "):
        detect(state, "file")
    file = WeightFile("file", state)
    for kind, sign in (("sit", -1), ("sra", 1)):
        trunk = tiny_sit(learn_sigma=False)
        assert import_weights(trunk, file, kind) == kind
        time = values["t"] if kind == "sra" else 1 - values["t"]
        assert worst(sign * run(trunk, values, time).velocity[0], tokens(values["sra.out"])) < 1e-5


def test_an_unknown_file_names_what_was_tried_and_the_nearest_kind(values):
    state = original(values, "repa")
    del state["pos_embed"]
    with pytest.raises(CheckpointError) as error:
        detect(state, "file")
    first, nearest, *others = str(error.value).splitlines()
    assert "of no known kind" in first
    assert nearest.strip() == "repa: pos_embed is missing"
    assert len(others) == len(KINDS) - 1


def test_a_kind_that_the_file_is_not(values):
    file = WeightFile("file", original(values, "repa"))
    with pytest.raises(CheckpointError, match="not of kind 'sit': projectors does not belong; it is of kind repa"):
        import_weights(tiny_sit(), file, "sit")
    with pytest.raises(ConfigError, match=r"'rapa' is not one of .* Did you mean: 'repa'"):
        import_weights(tiny_sit(), file, "rapa")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("sit", {"path_type": "GVP"}), ("sit", {"prediction": "score"}), ("repa", {"path_type": "cosine"})],
)
def test_weights_of_another_path_are_refused(tmp_path, values, kind, arguments):
    path = saved(tmp_path / "in.pt", original(values, kind), args=argparse.Namespace(**arguments, lr=1e-4))
    (name, value), *_ = arguments.items()
    with pytest.raises(CheckpointError, match=f"trained with {name} '{value}'; only"):
        load_sit(path, heads=2)


def test_parts_are_dropped_and_made_fresh_only_when_asked(values):
    file = WeightFile("file", original(values, "repa"))
    trunk = tiny_sit({TEACHER: ProjectorSpec()}, learn_sigma=False)
    fresh = trunk.projector.linear1.weight.clone()
    with pytest.raises(CheckpointError, match="the file has projectors 0, 1, the trunk has none"):
        import_weights(trunk, file)
    with pytest.raises(CheckpointError, match=r"4 missing: projector\.linear1\.weight"):
        import_weights(trunk, file, drop=["projectors"])
    with pytest.raises(CheckpointError, match=r"'projectorz' is no part of the trunk.* Did you mean: 'projectors'"):
        import_weights(tiny_sit({"a": ProjectorSpec()}), file, drop=["projectors"], fresh=["projectorz"])
    assert import_weights(trunk, file, drop=["projectors"], fresh=["projector"]) == "repa"
    assert torch.equal(trunk.projector.linear1.weight, fresh)
    assert worst(run(trunk, values, values["t"]).velocity[0], tokens(values["repa.out"])) < 1e-5


def test_a_fresh_part_that_the_file_has_is_refused(values):
    trunk = tiny_sit({TEACHER: ProjectorSpec()}, learn_sigma=False)
    with pytest.raises(CheckpointError, match="asked to be fresh, but here: projector"):
        import_weights(trunk, WeightFile("file", original(values, "sra")), fresh=["projector"])


def test_a_refused_import_copies_nothing(values):
    trunk = tiny_sit()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    state = original(values, "sit") | {"blocks.1.mlp.fc2.bias": torch.ones(3)}
    with pytest.raises(CheckpointError, match="1 mis-shaped: blocks"):
        import_weights(trunk, WeightFile("file", state))
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


@pytest.mark.parametrize("name", [TIME, "final_layer.linear.bias", "x_embedder.proj.weight"])
def test_a_name_that_the_conversion_needs_is_missing(values, name):
    state = original(values, "sra")
    del state[name]
    with pytest.raises(CheckpointError, match=f"not of kind 'sra': {name} is missing"):
        import_weights(tiny_sit(learn_sigma=False), WeightFile("file", state), "sra")


def test_settings_that_the_file_contradicts_are_named(values):
    trunk = tiny_sit(learn_sigma=False)
    with pytest.raises(CheckpointError, match=r"trunk\.sit\): learn_sigma False, the file has True$"):
        import_weights(trunk, WeightFile("file", original(values, "sit")))


def test_the_order_of_projectors_can_be_given(tmp_path, values):
    specs = {"siglip": ProjectorSpec("repa", SIGLIP), "dino": ProjectorSpec("repa", DINO)}
    trunk, state = tiny_sit(specs, learn_sigma=False), original(values, "repa")
    with pytest.raises(CheckpointError, match="mis-shaped: projectors"):
        import_weights(trunk, WeightFile("file", state))
    import_weights(trunk, WeightFile("file", state), projectors=["dino", "siglip"])
    assert worst(run(trunk, values, values["t"], ["siglip"]).projected["siglip"], values["repa.z1"]) < 1e-5
    export_weights(trunk, trunk.state_dict(), tmp_path / "out.pt", "repa", projectors=["dino", "siglip"])
    back = read_state_dict(tmp_path / "out.pt")
    assert torch.equal(back["projectors.1.4.weight"], state["projectors.1.4.weight"])
    with pytest.raises(CheckpointError, match="the trunk has dino, siglip, named were dino, clip"):
        export_weights(trunk, trunk.state_dict(), tmp_path / "no.pt", "repa", projectors=["dino", "clip"])


@pytest.mark.parametrize(
    ("trunk", "kind", "reason"),
    [
        (tiny_mmdit(), "sit", "the trunk is a MMDiT; kinds that hold one: flux2, flux2-diffusers, native-mmdit"),
        (tiny_sit(), "rae", "holds a DDT, and the trunk is a SiT"),
        (tiny_sit(), "selfflow", "projector is missing"),
        (tiny_sit({TEACHER: ProjectorSpec()}), "sit", "projector does not belong"),
        (tiny_sit({TEACHER: ProjectorSpec("repa")}), "selfflow", "projector.linear1.weight is missing"),
        (tiny_sit({"dino": ProjectorSpec("repa", 3)}), "repa", "must be .16,., a head without learn_sigma"),
        (tiny_sit(learn_sigma=False), "repa", "projectors is missing"),
        (tiny_sit({"dino": ProjectorSpec("simple", 3)}, learn_sigma=False), "repa", "projectors.0.4.weight is missing"),
    ],
)
def test_what_a_kind_cannot_hold(tmp_path, trunk, kind, reason):
    with pytest.raises(CheckpointError, match=reason):
        export_weights(trunk, trunk.state_dict(), tmp_path / "out.pt", kind)
    assert not list(tmp_path.iterdir())


def test_a_part_can_be_left_out_of_an_export(tmp_path):
    trunk = tiny_sit({TEACHER: ProjectorSpec()})
    export_weights(trunk, trunk.state_dict(), tmp_path / "out.pt", "sit", drop=["projector"])
    assert detect(read_state_dict(tmp_path / "out.pt"), "out") == "sit"
