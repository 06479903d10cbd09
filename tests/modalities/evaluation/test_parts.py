"""Evaluation of samples with several parts: a video with its audio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from core.errors import ConfigError
from core.evaluation.pair import PairPlan
from core.modes import Mode, Modes
from core.noising import NoisingConfig
from core.schedule import TimestepConfig
from core.trunk.projectors import ProjectorSpec
from modalities.base import Media, StoredLatents
from modalities.evaluation.attempts import Measured
from modalities.evaluation.measure import evaluate
from modalities.evaluation.networks.base import Features
from modalities.evaluation.networks.chosen import PartNetwork, own_networks, parts_of, result_names, stored_networks
from modalities.evaluation.networks.classifier import Classifier
from modalities.evaluation.networks.kinds import NetworkConfig
from modalities.evaluation.records import Reader, token_batch
from modalities.evaluation.samples import samples
from modalities.evaluation.settings import UNNAMED, EvaluationSettings
from modalities.evaluation.subject import plan
from tests.modalities.evaluation.subjects import STREAM, audiovisual_source, audiovisual_subject, audiovisual_trunk

FEW = EvaluationSettings(
    val=12, training=30, batch=5, generated=12, timesteps=[0.2, 0.7], classifier_steps=3, measures=["velocity"]
)


class Moments(nn.Module):
    """A feature network that says of a sample its mean and its mean square, and notes what it was shown."""

    kind, distance = "moments", "FD"

    def __init__(self, name: str):
        super().__init__()
        self.name, self.shapes = name, []

    def forward(self, media):
        self.shapes.append(tuple(media.shape[1:]))
        return Features(torch.stack([media.flatten(1).mean(1), media.flatten(1).square().mean(1)], dim=1))


def test_records_have_the_media_of_every_part_in_order_for_any_batch_size():
    asked = audiovisual_subject()
    (whole,) = asked.val.records(6, 6)
    assert list(whole.media) == ["video", "audio"]
    assert whole.media["video"].shape == (6, 5, 3, 12, 12)
    assert whole.media["audio"].shape == (6, 1, 2500)
    ones = list(asked.val.records(6, 1))
    for name, media in whole.media.items():
        assert torch.equal(torch.cat([one.media[name] for one in ones]), media)
    source = audiovisual_source(1, 24)
    (index,) = (i for i in range(24) if source.read(i).key == whole.keys[0])
    _, _, video, audio = source.draw(index)
    shown = torch.tensor(video).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(whole.media["video"][0], shown, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole.media["audio"][0], torch.tensor(audio).T, rtol=0, atol=1e-6)


def test_a_batch_has_a_segment_for_every_part():
    asked = audiovisual_subject()
    (batch,) = asked.val.batches(4, 4)
    assert [(segment.name, tuple(segment.x0.shape)) for segment in batch.segments] == [
        ("video", (4, 27, 96)),
        ("audio", (4, 41, 64)),
    ]
    assert all(segment.conditioning_mask is None for segment in batch.segments)


def test_parts_may_be_stored_as_latents():
    """Media and latents of the same records make the same tokens."""
    asked = audiovisual_subject()
    model, source = asked.model, audiovisual_source(1, 6)

    class Stored:
        def __len__(self):
            return len(source)

        def read(self, index):
            record = source.read(index)
            audio = torch.tensor(record.part("audio").media).T
            latents = StoredLatents(model.parts[STREAM]["audio"].adapter.encode(audio[None])[0])
            return replace(record, parts={**record.parts, "audio": Media(latents)})

        def fingerprint(self):
            return source.fingerprint()

    plain, stored = (Reader(model, STREAM, one, source.labels(), seed=0) for one in (source, Stored()))
    (media,), (mixed,) = plain.records(6, 6), stored.records(6, 6)
    assert isinstance(mixed.media["audio"], StoredLatents)
    for one, other in zip(
        token_batch(model, STREAM, media).segments, token_batch(model, STREAM, mixed).segments, strict=True
    ):
        torch.testing.assert_close(one.x0, other.x0)


def test_every_measure_has_its_names():
    asked = audiovisual_subject()
    student = audiovisual_trunk(asked.parts, len(asked.classes), projectors={"teacher": ProjectorSpec()})
    pair = PairPlan(student, 1, 2, NoisingConfig("dual"), TimestepConfig(), 0.25, Modes(rest=Mode(independent=True)))
    networks = {"video/a": PartNetwork("video", Moments("a")), "audio/b": PartNetwork("audio", Moments("b"))}
    found = evaluate(replace(asked, pair=pair), FEW, list(UNNAMED), networks)
    assert found.failed == []
    names = set(found.values)
    assert {"velocity/video/mean", "velocity/video/t=0.2", "velocity/audio/mean", "velocity/audio/t=0.7"} <= names
    assert {"probe/best", "knn/layer=1", "health/norm/layer=2", "health/align_cosine"} <= names
    assert {"samples/video/a/FD", "samples/video/a/KID", "samples/audio/b/FD", "samples/audio/b/coverage"} <= names
    assert not names & {"velocity/mean", "velocity/t=0.2", "samples/a/FD"}
    assert set(networks["video/a"].network.shapes) == {(5, 3, 12, 12)}
    assert set(networks["audio/b"].network.shapes) == {(1, 2500)}


def test_velocity_of_a_trunk_that_predicts_zero_is_that_of_each_part():
    asked = audiovisual_subject()
    for parameter in asked.model.trunk.media_out.parameters():
        torch.nn.init.zeros_(parameter)
    found = evaluate(asked, replace(FEW, val=24), ["velocity"], {}).values
    (batch,) = asked.val.batches(24, 24)
    for segment in batch.segments:  # the mean square of noise - data is 1 + that of the data
        expected = 1 + float(segment.x0.square().mean())
        assert found[f"velocity/{segment.name}/mean"] == pytest.approx(expected, rel=0.05)


def test_numbers_do_not_depend_on_the_batch_size():
    found = {}
    for batch in (5, 12):
        networks = {"audio/b": PartNetwork("audio", Moments("b"))}
        measures = ["velocity", "health", "samples"]
        found[batch] = evaluate(audiovisual_subject(), replace(FEW, batch=batch), measures, networks).values
    assert found[5] == pytest.approx(found[12], rel=1e-4, abs=1e-5)


def test_a_network_that_fails_on_one_part_leaves_the_other():
    class Broken(Moments):
        def forward(self, media):
            raise RuntimeError("CUDA out of memory")

    found = Measured()
    networks = {"video/a": PartNetwork("video", Broken("a")), "audio/a": PartNetwork("audio", Moments("a"))}
    samples(audiovisual_subject(), FEW, networks, found)
    assert found.failed == ["samples/video/a"]
    assert "samples/audio/a/FD" in found.values


def test_every_part_has_a_classifier_of_its_own(tmp_path):
    asked, found = audiovisual_subject(), Measured()
    networks = own_networks(asked, FEW, tmp_path, found)
    assert {name: (one.part, one.network.modality) for name, one in networks.items()} == {
        "video/classifier": ("video", "video"),
        "audio/classifier": ("audio", "audio"),
    }
    assert networks["audio/classifier"].network.sample_rate == 4000
    assert (found.failed, len([*tmp_path.iterdir()])) == ([], 2)
    again = own_networks(audiovisual_subject(), FEW, tmp_path, found)
    for name, one in networks.items():
        same = again[name].network.state_dict()
        assert all(torch.equal(same[key], value) for key, value in one.network.state_dict().items())
    assert len([*tmp_path.iterdir()]) == 2


def test_a_network_looks_at_the_parts_of_its_modality(tmp_path):
    asked = audiovisual_subject()
    path = Classifier("audio", ["a", "b"], "sounds", 4000).save(tmp_path / "audio clips.safetensors")
    for config, parts in (
        (NetworkConfig("clap", "weights"), ["audio"]),
        (NetworkConfig("i3d", "weights"), ["video"]),
        (NetworkConfig("inception", "weights"), ["video"]),  # frame by frame
        (NetworkConfig(), ["video", "audio"]),
        (NetworkConfig("classifier", path.name), ["audio"]),
    ):
        assert parts_of(asked, config, tmp_path) == parts
    settings = replace(FEW, networks=[NetworkConfig("classifier", path.name), NetworkConfig("i3d", "nowhere")])
    found, wrong = stored_networks(asked, settings, tmp_path)
    assert list(found) == ["audio/classifier"]
    assert found["audio/classifier"].part == "audio"
    assert list(wrong) == ["video/i3d"]
    assert result_names(asked, settings) == ["video/classifier", "audio/classifier", "video/i3d", "audio/i3d"]


def test_a_classifier_of_other_audio_is_refused_by_its_part(tmp_path):
    path = Classifier("audio", ["a", "b"], "sounds", 8000).save(tmp_path / "audio clips.safetensors")
    with pytest.raises(ConfigError, match="is a classifier of audio at 8000 Hz, not of audio at 4000 Hz"):
        stored_networks(audiovisual_subject(), replace(FEW, networks=[NetworkConfig("classifier", str(path))]), Path())


def test_what_can_be_measured_is_planned_as_for_one_part():
    assert plan(audiovisual_subject(), replace(FEW, measures=None)) == (list(UNNAMED), [])
    measures, notes = plan(audiovisual_subject(val=3), replace(FEW, measures=None))
    assert measures == ["velocity", "probe", "knn", "health"]
    assert notes[0].startswith("samples is left out: 3 held-out records to compare")
    same = audiovisual_subject()
    with pytest.raises(ConfigError, match=r"streams\.clips\.val: holds records that the run is trained on"):
        plan(replace(same, val=same.training), replace(FEW, measures=None))
