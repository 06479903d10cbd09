"""Which measures are made, what they are made of, and that nothing depends on the batch size."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from core.errors import ConfigError, DataError
from core.evaluation.pair import PairPlan
from core.evaluation.probes import linear_probe
from core.evaluation.velocity import velocity_loss_curve
from core.noising import NoisingConfig
from core.schedule import TimestepConfig
from core.trunk.projectors import ProjectorSpec
from core.trunk.sit import SiT
from modalities.conditioning.conditions import Prompt
from modalities.evaluation.measure import evaluate, others
from modalities.evaluation.networks.kinds import NetworkConfig
from modalities.evaluation.settings import UNNAMED, EvaluationSettings
from modalities.evaluation.subject import plan
from tests.modalities.evaluation.subjects import Memory, subject

ALL = EvaluationSettings(val=24, training=30, batch=5, generated=20, timesteps=[0.2, 0.7])
NO_SAMPLES = [name for name in UNNAMED if name != "samples"]


def apart(**training):
    return subject(Memory("val", 40), Memory("train", 30, **training))


def test_without_a_choice_everything_is_measured():
    assert plan(apart(), ALL) == (list(UNNAMED), [])
    assert plan(apart(), replace(ALL, measures=["knn"])) == (["knn"], [])


@pytest.mark.parametrize(("classes", "words"), [([], "no classes"), (["red"], "one class")])
def test_without_classes_what_needs_them_is_left_out_with_a_note_and_refused_when_named(classes, words):
    measures, notes = plan(apart(classes=classes), ALL)
    assert measures == ["velocity", "health"]
    assert [line.split(" is left out: ")[0] for line in notes] == ["probe", "knn", "samples"]
    assert all(f"the image data have {words}" in line for line in notes)
    assert "streams.image.evaluation.networks=[{kind: KIND, path: WEIGHTS}]" in notes[2]
    assert plan(apart(classes=classes), replace(ALL, measures=["velocity"])) == (["velocity"], [])
    with pytest.raises(ConfigError) as caught:
        plan(apart(classes=classes), replace(ALL, measures=["velocity", "probe", "samples"]))
    assert "measures: probe: needs classes" in str(caught.value)
    assert "Leave out probe, samples, or give the records classes." in str(caught.value)
    weights = [NetworkConfig("dinov2", "folder")]
    assert plan(apart(classes=classes), replace(ALL, networks=weights))[0] == ["velocity", "health", "samples"]


@pytest.mark.parametrize(
    ("val", "training", "changes", "left_out"),
    [
        (Memory("val", 3), Memory("train", 30), {}, {"samples": "3 held-out records to compare; at least 6"}),
        (Memory("val", 9), Memory("train", 30), {"generated": 4}, {"samples": "4 generated samples to compare"}),
        (Memory("val", 9), Memory("train", 4), {}, {"probe": "4 training records; at least 5"}),
        (Memory("val", 9), Memory("train", 30), {"training": 2}, {"probe": "2 training records; at least 5"}),
        (
            Memory("val", 9),
            Memory("train", 2),
            {},
            {"probe": "2 training records", "samples": "the small classifier needs at least 3 training records"},
        ),
        (
            Memory("val", 9, classes=["cat"]),
            Memory("train", 30),
            {},
            dict.fromkeys(("probe", "knn"), "classes of the held-out records (cat) are none of the training data's"),
        ),
        (
            Memory("val", 9, classes=[]),
            Memory("train", 30),
            {},
            dict.fromkeys(("probe", "knn"), "the classes of the held-out records are not known"),
        ),
        (
            Memory("val", 9),
            Memory("train", 30),
            {"conditions": "random"},
            {"samples": "random draws classes, and this run is conditioned on text; use val"},
        ),
    ],
)
def test_what_the_data_do_not_allow_is_known_before_they_are_read(val, training, changes, left_out):
    asked, settings = subject(val, training, kind="text"), replace(ALL, **changes)
    measures, notes = plan(asked, settings)
    assert measures == [name for name in UNNAMED if name not in left_out]
    assert len(notes) == len(left_out)
    for name, why in left_out.items():
        assert any(line.startswith(f"{name} is left out: ") and why in line for line in notes)
    with pytest.raises(ConfigError, match=f"measures: {next(iter(left_out))}: "):
        plan(asked, replace(settings, measures=["velocity", *left_out]))
    assert all(len(side.reads) <= 40 for side in (val, training))  # names alone, to find shared ones


def test_held_out_classes_that_a_model_of_classes_does_not_know_are_refused():
    strange = subject(Memory("val", 9, classes=["cat", "dog"]), Memory("train", 30))
    with pytest.raises(ConfigError, match=r"val: its classes \(cat, dog\) are none of the classes that the run"):
        plan(strange, ALL)
    assert plan(subject(Memory("val", 9, classes=["cat", "red"]), Memory("train", 30)), ALL)[0] == list(UNNAMED)


def test_a_measure_that_fails_is_noted_and_the_others_are_made(monkeypatch):
    def broken(*_, **__):
        raise torch.linalg.LinAlgError("did not converge")

    for name, function, kept in (
        ("velocity", "velocity_loss_curve", {"probe", "knn", "health"}),
        ("probe", "linear_probe", {"velocity", "knn", "health"}),
        ("probe, knn", "block_features", {"velocity", "health"}),
        ("health", "noisy_inputs", {"velocity", "probe", "knn"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"modalities.evaluation.measure.{function}", broken)
            found = evaluate(apart(), ALL, NO_SAMPLES, {})
        assert found.failed == [name]
        assert "LinAlgError: did not converge (test_measure.py:" in found.warnings[0]
        assert {key.split("/")[0] for key in found.values} == kept


def test_weights_that_are_not_finite_give_notes_and_no_numbers():
    asked = apart()
    with torch.no_grad():
        next(asked.model.trunk.parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match=r"nothing could be measured\nvelocity is left out: not finite: velocity/me"):
        evaluate(asked, ALL, NO_SAMPLES, {})


def test_classes_that_turn_out_to_be_missing_are_noted():
    """A class that the source names, of records that cannot be read."""
    reds = {index for index in range(30) if index % 3 == 2}
    one = subject(Memory("val", 24), Memory("train", 30, broken=set(range(30)) - reds))
    found = evaluate(one, ALL, ["velocity", "probe", "knn"], {})
    assert found.failed == ["probe, knn"]
    assert found.warnings[0] == "probe, knn is left out: the 10 training records that were read are of one class"
    assert "velocity/mean" in found.values
    purple = subject(Memory("val", 24, strange=set(range(24))), Memory("train", 30))
    found = evaluate(purple, ALL, ["velocity", "knn"], {})
    assert found.warnings[0] == ("knn is left out: not one of 24 held-out records is of a class of the training data")


def test_a_class_with_one_record_and_more_features_than_records_are_no_hindrance():
    lonely = subject(Memory("val", 9), Memory("train", 7))
    found = evaluate(lonely, replace(ALL, val=1), ["velocity", "probe", "knn", "health"], {})
    assert found.failed == []
    assert {"probe/best", "knn/best", "health/norm/layer=1"} <= set(found.values)


def test_any_exception_of_a_decoder_sets_a_record_aside(monkeypatch):
    asked = apart()
    real = type(asked.parts["image"].adapter).load

    def load(self, record, draw):
        if record.origin == "val/3":
            raise ZeroDivisionError("division by zero")
        return real(self, record, draw)

    monkeypatch.setattr(type(asked.parts["image"].adapter), "load", load)
    found = evaluate(asked, replace(ALL, val=40), ["velocity"], {})
    assert found.failed == []
    (line,) = found.warnings
    assert line.startswith("1 held-out records cannot be used; the first: val/3: cannot be decoded: ZeroDivisionError")


def test_records_that_were_trained_on_are_refused():
    same = subject(Memory("train", 30), Memory("train", 30))
    part = subject(Memory("train", 10), Memory("train", 30))
    for spoilt, words in ((same, "they are the same 30 records"), (part, "10 of the records that were looked at")):
        with pytest.raises(ConfigError, match=f"streams.image.val: holds records .* trained on: {words}"):
            plan(spoilt, ALL)
        with pytest.raises(ConfigError, match="spoil samples by a classifier that is trained on them"):
            plan(spoilt, replace(ALL, measures=["samples"]))
    allowed = replace(ALL, measures=["samples"], networks=[NetworkConfig("inception", "weights.pth")])
    (line,) = plan(part, allowed)[1]  # the usual protocol on ImageNet
    assert line.startswith("samples are compared with records that were trained on: 10 of")


@pytest.mark.slow
def test_every_number_is_the_same_for_any_batch_size_and_in_every_run():
    found = {batch: evaluate(apart(), replace(ALL, batch=batch), NO_SAMPLES, {}).values for batch in (1, 7, 50)}
    assert found[1] == pytest.approx(found[50], rel=1e-5, abs=1e-6)
    assert found[7] == pytest.approx(found[50], rel=1e-5, abs=1e-6)
    assert evaluate(apart(), replace(ALL, batch=7), NO_SAMPLES, {}).values == found[7]
    assert set(found[1]) == {
        *("velocity/mean", "velocity/t=0.2", "velocity/t=0.7", "probe/best", "knn/best"),
        *(f"{name}/layer={layer}" for name in ("probe", "knn") for layer in (1, 2, 3)),
        *(
            f"health/{name}/layer={layer}"
            for name in ("norm", "effective_rank", "token_cosine", "mean_cosine")
            for layer in (1, 2, 3)
        ),
    }
    other = evaluate(apart(), replace(ALL, seed=1), ["velocity"], {}).values
    assert other["velocity/t=0.2"] != found[7]["velocity/t=0.2"]


def test_the_probe_learns_from_training_records_and_is_tested_on_the_others(monkeypatch):
    seen = {}

    def noting(train_x, train_y, test_x, test_y, classes, seed):
        seen[len(seen) + 1] = (train_x, train_y, test_x, test_y, classes)
        return linear_probe(train_x, train_y, test_x, test_y, classes, seed=seed)

    monkeypatch.setattr("modalities.evaluation.measure.linear_probe", noting)
    val, training = Memory("val", 24, strange={5}), Memory("train", 30)
    measured = evaluate(subject(val, training), ALL, ["probe"], {})
    train_x, train_y, test_x, _, classes = seen[2]
    assert (train_x.shape, test_x.shape, classes) == ((30, 32), (23, 32), 3)
    assert sorted(train_y.tolist()) == sorted([0, 1, 2] * 10)
    assert sorted(training.reads) == list(range(30))
    assert sorted(val.reads) == list(range(24))
    # Colors are easy: a probe that met other labels or other features would be far from this.
    assert measured.values["probe/best"] == max(measured.values[f"probe/layer={k}"] for k in (1, 2, 3)) > 0.9
    assert measured.warnings == [
        "probe, knn: 1 held-out records are left out: not of a class of the training data",
    ]


def test_neither_the_condition_nor_the_noise_tells_the_class():
    """Gray images under different labels, with equal keys on both sides: only leaks could be learned."""

    class Gray(Memory):
        def read(self, index):
            record = super().read(index)
            return replace(record, media=record.media * 0 + 100)

    found = evaluate(subject(Gray("val", 24), Gray("train", 30)), ALL, ["probe", "knn"], {}).values
    assert found["probe/best"] < 0.7
    assert found["knn/best"] < 0.7


def test_unusable_records_are_in_the_warnings():
    measured = evaluate(subject(Memory("val", 20, broken={2, 3}), Memory("train", 30)), ALL, ["velocity"], {})
    (line,) = measured.warnings
    assert re.fullmatch(r"2 held-out records cannot be used; the first: val/[23]: damaged", line)


def test_velocity_of_a_trunk_that_predicts_zero_is_the_second_moment_of_the_target():
    """v = noise - data, and these data are known: its mean square is 1 + mean x0^2 at every time."""
    asked = apart()
    torch.nn.init.zeros_(asked.model.trunk.final_layer.linear.weight)
    torch.nn.init.zeros_(asked.model.trunk.final_layer.linear.bias)
    found = evaluate(asked, replace(ALL, val=40), ["velocity"], {}).values
    x0 = torch.cat([batch.segments[0].x0 for batch in asked.val.batches(40, 40)])
    for name in ("velocity/mean", "velocity/t=0.2", "velocity/t=0.7"):
        assert found[name] == pytest.approx(1 + float(x0.square().mean()), rel=0.05)


def test_losses_under_the_own_another_and_no_condition_on_the_same_noise():
    asked, measures = apart(), ["velocity", "condition"]
    found = {batch: evaluate(asked, replace(ALL, batch=batch), measures, {}).values for batch in (5, 24)}
    assert found[5] == pytest.approx(found[24], rel=1e-5)
    values = found[24]
    assert values["condition/own"] == values["velocity/mean"]
    assert values["condition/gain"] == pytest.approx(values["condition/other"] / values["condition/own"] - 1)
    # by hand: the labels of the next record that has another one, and the row of the table for no label
    (batch,) = asked.val.batches(24, 24)
    own = batch.context.label.tolist()
    swapped = [next(label for label in (own + own)[place + 1 :] if label != own[place]) for place in range(24)]
    for name, context in {
        "other": replace(batch.context, label=torch.tensor(swapped)),
        "none": batch.context.drop_all(),
    }.items():
        curve = velocity_loss_curve(asked.model.trunk, [replace(batch, context=context)], ALL.timesteps, ALL.seed)
        assert values[f"condition/{name}"] == pytest.approx(curve.mean("image"), rel=1e-5)
        assert values[f"condition/{name}"] != pytest.approx(values["condition/own"], rel=1e-4)


def test_the_next_other_condition():
    def texts(*words):
        return [prompt.text for prompt in others([Prompt(word) for word in words])]

    assert texts("a", "b", "c") == ["b", "c", "a"]
    assert texts("a", "a", "b", "a") == ["b", "b", "a", "b"]
    with pytest.raises(DataError, match="all 2 held-out records have one condition, 'a'"):
        texts("a", "a")


def test_what_conditions_are_measured_of():
    asked = replace(ALL, measures=["condition"])
    assert plan(apart(), asked) == (["condition"], [])
    with pytest.raises(ConfigError, match="condition: the run is trained without conditions"):
        plan(subject(Memory("val", 9), Memory("train", 30), kind="none"), asked)
    with pytest.raises(ConfigError, match="condition: one held-out record"):
        plan(subject(Memory("val", 1), Memory("train", 30)), asked)


def test_the_pair_is_measured_where_a_run_has_one():
    asked = apart()
    trunk = SiT(asked.model.trunk.config, seed=1, projectors={"teacher": ProjectorSpec()}).eval()
    pair = PairPlan(trunk, 1, 2, NoisingConfig("dual"), TimestepConfig(), 0.25)
    found = {}
    for batch in (4, 24):
        found[batch] = evaluate(replace(asked, pair=pair), replace(ALL, batch=batch), ["health"], {}).values
    assert found[4] == pytest.approx(found[24], rel=1e-5, abs=1e-6)
    aligned = {name.removeprefix("health/align_") for name in found[4] if "align" in name}
    assert aligned == {
        *("cosine", "cosine_noisier", "cosine_same", "share_noisier", "norm_student", "norm_teacher"),
        *("level_student", "level_teacher", "level_gap", "share_masked"),
    }


def test_settings_that_make_no_sense_are_named():
    def problems(**changes):
        return "\n".join(EvaluationSettings(**changes).problems())

    assert problems() == ""
    assert problems(measures=["velocity", "porbe"]) == (
        "measures: 'porbe' is not one of velocity, probe, knn, health, samples, condition. Did you mean: 'probe'?"
    )
    assert "measures: empty" in problems(measures=[])
    assert "generated: 0 must be at least 1" in problems(generated=0)
    assert "timesteps, feature_timestep: 1.5 must lie in [0, 1]" in problems(timesteps=[1.5])
    assert "timesteps: empty" in problems(timesteps=[])
    assert "networks: empty" in problems(networks=[])
    assert problems(networks=[], measures=["velocity"]) == ""
    assert "conditions: 'all' is not one of val, random" in problems(conditions="all")


def test_no_usable_record_at_all():
    with pytest.raises(DataError, match="not one of 3 records can be used"):
        evaluate(subject(Memory("val", 3, broken={0, 1, 2}), Memory("train", 30)), ALL, ["velocity"], {})
