"""What other projects call our settings."""

from __future__ import annotations

import pytest

from configs.aliases import ALIASES
from configs.load import load_config
from configs.schema import Config
from core.errors import ConfigError
from core.training.unknown import KnownKeys
from modalities.table import MODALITIES
from tests.tools.tiny import CONFIG


def test_every_alias_leads_to_a_setting():
    known = KnownKeys(Config, ALIASES, {"streams": {name: {"modality": name} for name in MODALITIES}})
    assert [name for name, patterns in ALIASES.items() if not all(known.expand(each) for each in patterns)] == []


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("steps=4", "training.steps"),
        ("optim.lr=1e-4", "training.optimizer.lr"),
        ("lr=1e-4", "training.optimizer.lr"),
        ("learning_rate=1e-4", "training.optimizer.lr"),
        ("batch_size=4", "streams.image.batch"),
        ("num_workers=4", "training.workers"),
        ("max_steps=4", "training.steps"),
        ("epochs=4", "training.steps"),
        ("cfg=4", "streams.image.sampling.cfg_scale"),
        ("guidance_scale=4", "streams.image.sampling.cfg_scale"),
        ("ema_decay=0.9", "training.ema.decay"),
        ("gradient_accumulation_steps=4", "training.accumulate"),
        ("mixed_precision=bf16", "training.precision"),
        ("resolution=64", "streams.image.media.size"),
        ("num_inference_steps=64", "streams.image.sampling.steps"),
        ("output_dir=here", "run"),
        ("condition.max_words=30", "condition.text.max_words"),
        ("warmup=3", "training.optimizer.warmup"),
        ("image.batch=3", "streams.image.batch"),
        ("streams.audio.media.hop_length=3", "hop"),
        ("modalities.image.batch=3", "streams"),
        ("streams.video.first_frame_share=0.5", "modes"),
        ("streams.video.condition_on={first_frame: 0.5}", "modes"),
        ("streams.video.first_frame_noise=0.5", "condition_noise"),
    ],
)
def test_common_names_are_answered_with_ours(override, wanted):
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIG, [override])
    assert f" Did you mean: '{wanted}'?" in str(caught.value)
