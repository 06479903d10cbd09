"""What each alignment term asks of the networks, when its weight changes, and every refusal of its settings."""

import pytest

from configs.methods import METHODS, method_alignment, method_settings
from core.alignment.base import merge_feature_layers
from core.alignment.dispersive import Dispersive
from core.alignment.ema_teacher import EmaTeacher, EmaTeacherConfig
from core.alignment.external import External, ExternalConfig
from core.alignment.layer_sync import LayerSync, LayerSyncConfig
from core.alignment.terms import AlignmentConfig, build_alignment
from core.errors import ConfigError
from core.types import FeatureLayers

SIT = {"B": 12, "L": 24, "XL": 28}


def test_taps_of_several_terms_are_one_forward():
    merged = merge_feature_layers(
        [FeatureLayers(raw=(20, 8)), FeatureLayers(raw=(8, 16), projected={"a": 8}), FeatureLayers(projected={"b": 4})]
    )
    assert merged == FeatureLayers(raw=(8, 16, 20), projected={"a": 8, "b": 4})
    assert merge_feature_layers([]) == FeatureLayers()
    assert (
        merge_feature_layers(
            [FeatureLayers(raw=(8,), stop_after=8), FeatureLayers(raw=(20,), stop_after=20)]
        ).stop_after
        == 20
    )
    assert merge_feature_layers([FeatureLayers(raw=(8,), stop_after=8), FeatureLayers()]).stop_after is None


def test_only_the_sections_that_are_set_are_terms():
    assert build_alignment(AlignmentConfig(), 12) == []
    config = AlignmentConfig(EmaTeacherConfig(), ExternalConfig(), LayerSyncConfig())
    assert [type(term) for term in build_alignment(config, 12)] == [EmaTeacher, External, LayerSync]
    assert [type(term) for term in build_alignment(method_alignment("dispersive"), 12)] == [Dispersive]


@pytest.mark.parametrize(
    ("section", "layers"),
    [
        # REPA's issue 12: 4 for B, 8 for L and XL. At most 8, and never below 1.
        (lambda depth: ExternalConfig().student_layer(depth), {"B": 4, "L": 8, "XL": 8, 40: 8, 6: 2, 1: 1}),
        # SRA: argument parser (4, 8) for B, README (8, 20) for XL. Self-Flow: (8, 20) for XL.
        (lambda depth: EmaTeacherConfig().layers(depth), {"B": (4, 8), "L": (7, 17), "XL": (8, 20), 21: (6, 15)}),
        # LayerSync's README: (8, 16) for XL.
        (lambda depth: LayerSyncConfig().layers(depth), {"B": (3, 7), "L": (7, 14), "XL": (8, 16)}),
    ],
)
def test_default_layers(section, layers):
    assert {size: section(SIT.get(size, size)) for size in layers} == layers


def test_which_terms_need_a_teacher_and_what_projectors_they_use():
    repa, sra, sync = (build_alignment(method_alignment(name), 28)[0] for name in ("repa", "sra", "layersync"))
    assert sra.teacher_feature_layers == FeatureLayers(
        raw=(20,), stop_after=20
    )  # raw features, and nothing behind them is computed
    assert sra.feature_layers(()) == FeatureLayers(projected={"teacher": 8})
    assert (repa.teacher_feature_layers, sync.teacher_feature_layers) == (None, None)
    assert repa.feature_layers(["dinov2", "siglip"]) == FeatureLayers(projected={"dinov2": 8, "siglip": 8})
    assert repa.feature_layers(()) == FeatureLayers()  # a modality without an encoder: no projector runs
    assert sync.feature_layers(()) == FeatureLayers(raw=(8, 16))


def test_weight_schedule():
    constant = EmaTeacherConfig(weight=0.5)
    assert [constant.weight_at(step) for step in (0, 10**7)] == [0.5, 0.5]
    falling = EmaTeacherConfig(weight=2.0, constant_steps=100, decay_10x_steps=50)
    assert [falling.weight_at(step) for step in (0, 100)] == [2.0, 2.0]
    assert falling.weight_at(150) == pytest.approx(0.2)
    assert falling.weight_at(175) == pytest.approx(0.2 * 10**-0.5)
    at_once = EmaTeacherConfig(weight=1.0, decay_10x_steps=10)
    assert at_once.weight_at(5) == pytest.approx(10**-0.5)


REFUSALS = [
    (EmaTeacherConfig(similarity="cos"), "similarity: 'cos' is not one of cosine, l1, l2, smooth_l1"),
    (EmaTeacherConfig(weight=0.0), "weight: 0.0 must be above 0; set alignment.ema_teacher: null"),
    (EmaTeacherConfig(projector="simpel"), "projector: 'simpel' is not one of simple, repa. Did you mean: 'simple'?"),
    (EmaTeacherConfig(decay_10x_steps=-1), "constant_steps, decay_10x_steps: 0, -1 must not be negative"),
    (EmaTeacherConfig(constant_steps=5), "constant_steps: 5 has no meaning without decay_10x_steps"),
    (ExternalConfig(similarity="dot"), "similarity: 'dot' is not one of"),
    (ExternalConfig(weight=-1.0), "weight: -1.0 must be above 0; set alignment.external: null"),
    (ExternalConfig(projector="mlp"), "projector: 'mlp' is not one of simple, repa"),
    (LayerSyncConfig(similarity="L2"), "similarity: 'L2' is not one of"),
    (LayerSyncConfig(weight=0.0), "weight: 0.0 must be above 0; set alignment.layer_sync: null"),
]


@pytest.mark.parametrize(("config", "message"), REFUSALS)
def test_refusals(config, message):
    (line,) = config.problems()
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EmaTeacherConfig(student_layer=8, teacher_layer=40), "need 1 <= student_layer < teacher_layer <= depth"),
        (EmaTeacherConfig(student_layer=8, teacher_layer=8), "need 1 <= student_layer < teacher_layer <= depth"),
        (EmaTeacherConfig(student_layer=0), "need 1 <= student_layer < teacher_layer <= depth, got 0, 20, 28"),
        (ExternalConfig(layer=29), "layer: 29 must lie in 1..28"),
        (ExternalConfig(layer=0), "layer: 0 must lie in 1..28"),
        # its argument parser's own default, 8 and 8: a loss whose gradient is 0
        (LayerSyncConfig(layer=8, target_layer=8), "need 1 <= layer < target_layer <= depth, got 8, 8, 28"),
        (LayerSyncConfig(layer=0), "need 1 <= layer < target_layer <= depth, got 0, 16, 28"),
        (LayerSyncConfig(target_layer=29), "need 1 <= layer < target_layer <= depth, got 8, 29, 28"),
    ],
)
def test_layers_must_fit_the_depth(config, message):
    (line,) = config.depth_problems(28)
    assert line.startswith(message)


def test_problems_of_layers_name_their_section():
    config = AlignmentConfig(EmaTeacherConfig(teacher_layer=99), layer_sync=LayerSyncConfig(layer=99))
    assert [line.split(":")[0] for line in config.depth_problems(28)] == ["ema_teacher", "layer_sync"]
    assert AlignmentConfig().depth_problems(28) == []


@pytest.mark.parametrize("method", METHODS)
def test_every_row_of_the_method_table_is_valid(method):
    config = method_alignment(method)
    assert [line for name in config.present() for line in getattr(config, name).problems()] == []
    for depth in (*SIT.values(), 6, 21):
        assert config.depth_problems(depth) == []


def test_an_unknown_method_is_refused_with_the_nearest():
    assert method_settings({}) is METHODS["self_flow"]
    with pytest.raises(ConfigError, match="Did you mean: 'self_flow'"):
        method_settings({"method": "selfflow"})
