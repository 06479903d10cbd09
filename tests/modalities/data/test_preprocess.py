"""Microbatches completed on the device: text features that were stored, and those that are computed there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", reason="text encoders are read with transformers")

from autoencoders.base import LatentNormalization
from core.noising import NoisingConfig
from core.schedule import TimestepConfig
from core.training.loader import Microbatch
from core.training.mixing import StreamMix
from core.types import map_tensors
from modalities.base import Record
from modalities.conditioning import TextEncoder, TextEncoderConfig
from modalities.conditioning.conditions import ConditionConfig, Conditions
from modalities.data.loader import StepDataset, StepLoader
from modalities.data.preprocess import DevicePreprocess
from modalities.image import ImageAdapter, ImageConfig
from modalities.streams import Stream, make_parts
from modalities.synthetic.draw import SyntheticSource
from tests.modalities.conditioning.small import WIDTH, save_text_encoder

CAPTIONS = ("a red circle", "the blue square moving left", "dog", "")


class Captioned(SyntheticSource):
    """Four captions for every image, with their stored features where `text` says so."""

    def __init__(self, text=lambda index: ()):
        super().__init__("image", 8, 0, 12)
        self.text = text

    def read(self, index: int) -> Record:
        return replace(super().read(index), captions=CAPTIONS, text=self.text(index))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> TextEncoder:
    path = save_text_encoder(tmp_path_factory.mktemp("t5"))
    return TextEncoder(TextEncoderConfig("t5", str(path), max_tokens=8, width=WIDTH, precision="fp32"))


def dataset(encoder: TextEncoder, source: Captioned, **choice) -> StepDataset:
    adapter = ImageAdapter(ImageConfig([8, 8]))
    stream = Stream(source, make_parts({"image": adapter}), TimestepConfig(), 0.25, **choice)
    conditions = Conditions(ConditionConfig(cfg_dropout=0.4, encoder=encoder.config), [])
    mix = StreamMix(0, {"image": 1.0}, {"image": 5})
    return StepDataset(0, mix, {"image": stream}, NoisingConfig(), conditions)


def prepared(encoder: TextEncoder, data: StepDataset, workers: int = 0) -> list[Microbatch]:
    parts = data.streams["image"].parts
    channels = parts["image"].adapter.channels
    plain = LatentNormalization(torch.zeros(channels), torch.ones(channels))
    complete = DevicePreprocess({"image": parts}, {"image": plain}, {}, encoder)
    return [complete(item) for _, items in StepLoader(data, workers).steps(0, 4) for item in items]


def tensors(item: Microbatch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(item.batch, lambda tensor: (found.append(tensor), tensor)[1])
    return found


def equal(a: Microbatch, b: Microbatch) -> bool:
    return all(torch.equal(*pair) for pair in zip(tensors(a), tensors(b), strict=True))


def test_stored_features_give_the_bits_of_computed_ones(encoder):
    stored = tuple(encoder.encode(CAPTIONS))
    computed = prepared(encoder, dataset(encoder, Captioned()))
    unread = TextEncoder(encoder.config, "nowhere")
    mixed = Captioned(lambda index: stored if index % 2 else ())
    for other in (
        prepared(unread, dataset(encoder, Captioned(lambda _: stored))),
        prepared(encoder, dataset(encoder, mixed)),
        prepared(encoder, dataset(encoder, Captioned()), workers=1),
    ):
        assert all(map(equal, computed, other))
    assert not equal(computed[0], computed[1])
    for item in computed:
        context = item.batch.context
        assert context.tokens.shape == (5, 8, WIDTH)
        assert not context.valid[context.dropped].any()
        assert context.valid[~context.dropped].any(dim=1).all()


def test_dropped_captions_are_not_encoded(encoder):
    for _, (item,) in StepLoader(dataset(encoder, Captioned()), 0).steps(0, 4):
        assert [text is None for text in item.condition.texts] == item.condition.known.dropped.tolist()


def test_whether_the_data_store_features(encoder):
    stored = tuple(encoder.encode(CAPTIONS))
    assert dataset(encoder, Captioned(lambda _: stored)).stores_text()
    assert not dataset(encoder, Captioned()).stores_text()


def test_the_chosen_caption_is_trained_on(encoder):
    for choice, text in (("longest", CAPTIONS[1]), ("middle", "dog"), ("first", CAPTIONS[0])):
        for _, (item,) in StepLoader(dataset(encoder, Captioned(), caption_choice=choice), 0).steps(0, 2):
            assert set(item.condition.texts) - {None} == {text}
