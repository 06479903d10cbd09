import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.errors import CheckpointError, ConfigError
from modalities.targets import EncoderConfig, build_encoder
from modalities.targets.mert import Waveform
from tests.modalities.targets.encoder_models import make_hubert, media, save, save_mert

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def tone(rate: int, samples: int, hertz: float) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(samples).double() / rate).float()


def encoder(folder, samples: int, steps: int, stride: int, rate: int = 24000, **settings):
    config = EncoderConfig("mert", str(folder), **settings)
    return build_encoder(config, "audio", (samples,), (steps, 1, 1), stride, rate)


def reference(model, audio: torch.Tensor) -> torch.Tensor:
    """(frames, D) of a mono audio at 24 kHz, by the feature extractor and the class of the library."""
    extract = transformers.Wav2Vec2FeatureExtractor(sampling_rate=24000, do_normalize=True)
    with torch.no_grad():
        return model(extract(audio.numpy(), sampling_rate=24000, return_tensors="pt").input_values).last_hidden_state[0]


def test_mert_is_hubert_on_the_normalized_audio(tmp_path):
    """At 24 kHz, stereo, interpolated between the centers of the frames by numpy."""
    folder = save_mert(tmp_path)
    model = transformers.HubertModel(make_hubert().config).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    audio = 0.3 * media(2, 2, 4000) + 0.1
    found = encoder(folder, 4000, 40, 100)(audio)
    width, hop = 10 + 2 * 5 + 1 * 20, 80
    for sample, features in zip(audio, found, strict=True):
        frames = reference(model, sample.mean(0))
        assert len(frames) == (4000 - width) // hop + 1
        centers = np.arange(len(frames)) * hop + width / 2
        wanted = np.arange(40) * 100 + 50
        expected = np.stack([np.interp(wanted, centers, channel) for channel in frames.T.numpy()], axis=1)
        np.testing.assert_allclose(features.numpy(), expected, atol=2e-5, rtol=1e-4)


def test_long_steps_get_the_mean_of_their_frames(tmp_path):
    folder = save_mert(tmp_path)
    audio = media(1, 1, 8040)  # 101 frames, the center of the first at 20
    each = encoder(folder, 8040, 101, 80)(audio)[0]
    found = encoder(folder, 8040, 10, 800)(audio)[0]
    # Frame j stands for 80 j - 20 .. 80 j + 60: step 0 covers three quarters of frame 0 and a quarter of frame 10.
    plain = build_encoder(EncoderConfig("mert", str(folder)), "audio", (8040,), (101, 1, 1), 80, 24000)
    plain.weights = None
    frames = plain(audio)[0]
    expected = (0.75 * frames[0] + frames[1:10].sum(0) + 0.25 * frames[10]) / 10
    torch.testing.assert_close(found[0], expected, atol=2e-5, rtol=1e-4)
    assert each.shape == (101, 24)


def test_audio_at_another_rate_has_the_features_of_the_same_audio_at_24_khz(tmp_path):
    folder = save_mert(tmp_path)
    high, low = tone(24000, 24000, 440) + tone(24000, 24000, 1200), tone(8000, 8000, 440) + tone(8000, 8000, 1200)
    at_high = encoder(folder, 24000, 50, 480)(high[None, None])[0, 3:-3]
    at_low = encoder(folder, 8000, 50, 160, 8000)(low[None, None])[0, 3:-3]
    shifted = encoder(folder, 24000, 50, 480)(high.roll(240)[None, None])[0, 3:-3]
    error = (at_low - at_high).square().mean().sqrt()
    assert error < 0.03 * at_high.std()
    assert error < 0.2 * (shifted - at_high).square().mean().sqrt()  # ten milliseconds would be seen


@pytest.mark.parametrize(("old", "new"), [(4000, 24000), (16000, 24000), (44100, 24000), (48000, 24000)])
def test_resampled_tones_are_the_tones_at_the_new_rate(old, new):
    prepare = Waveform(old, new, normalize=False)
    for hertz in (60.0, 440.0, 0.4 * min(old, new)):
        found = prepare(tone(old, old, hertz)[None, None])[0]
        assert len(found) == new
        inside = slice(new // 50, -new // 50)
        torch.testing.assert_close(found[inside], tone(new, new, hertz)[inside], atol=1e-4, rtol=0)


def test_what_lies_above_the_new_nyquist_frequency_is_removed():
    found = Waveform(48000, 24000, normalize=False)(tone(48000, 24000, 14000)[None, None])[0]
    assert found[500:-500].abs().max() < 1e-4


def test_constant_and_odd_lengths():
    for samples in (1, 999, 1000, 1001):
        prepare = Waveform(44100, 24000, normalize=False)
        assert prepare(torch.ones(2, 1, samples)).shape == (2, prepare.length(samples))
    assert torch.equal(Waveform(24000, 24000, normalize=False)(torch.ones(1, 2, 5)), torch.ones(1, 5))
    torch.testing.assert_close(
        Waveform(16000, 24000, normalize=False)(torch.ones(1, 1, 4000))[0, 200:-200],
        torch.ones(5600),
        atol=1e-5,
        rtol=0,
    )


def test_silence_is_finite_and_the_preprocessor_decides_about_normalization(tmp_path):
    assert (Waveform(8000, 24000, normalize=True)(torch.zeros(1, 1, 800)) == 0).all()
    loud = save(make_hubert(), tmp_path / "a", {"do_normalize": False, "sampling_rate": 16000}, model_type="mert_model")
    prepare = encoder(loud, 16000, 100, 160, 16000).prepare
    assert prepare.filters is None
    assert not prepare.normalize
    prepare = encoder(save_mert(tmp_path / "b"), 16000, 100, 160, 16000).prepare
    assert prepare.filters is not None
    assert prepare.normalize


def test_the_published_names_of_the_weight_norm_are_understood(tmp_path):
    """MERT was published with weight_g and weight_v; a loader that missed them would leave random positions."""
    folder = save_mert(tmp_path / "new")
    audio = media(1, 1, 4000)
    expected = encoder(folder, 4000, 40, 100)(audio)
    old = save_mert(tmp_path / "old")
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in load_file(old / "model.safetensors").items()
    }
    assert "encoder.pos_conv_embed.conv.weight_g" in renamed
    (old / "model.safetensors").unlink()
    torch.save(renamed, old / "pytorch_model.bin")
    assert torch.equal(encoder(old, 4000, 40, 100)(audio), expected)
    del renamed["encoder.pos_conv_embed.conv.weight_g"]
    torch.save(renamed, old / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"these weights do not fit a HubertModel: (missing keys: encoder.pos|weight_norm)"
    ):
        encoder(old, 4000, 40, 100)


def test_what_hubert_cannot_compute_is_refused(tmp_path):
    for name in ("feature_extractor_cqt", "deepnorm"):
        folder = save_mert(tmp_path / name, **{name: True})
        with pytest.raises(ConfigError, match=f"has {name}: true, which HubertModel cannot compute"):
            encoder(folder, 4000, 40, 100)


def test_audio_and_rates_that_cannot_work(tmp_path):
    folder = save_mert(tmp_path)
    with pytest.raises(
        ConfigError, match=r"needs at least 0.0017 s of audio for a feature frame, the media has 0.0015 s"
    ):
        encoder(folder, 36, 1, 36)
    with pytest.raises(ConfigError, match="rates in the ratio 22051 : 24000 need a filter"):
        encoder(folder, 22051, 10, 2206, 22051)
    stereo = save(make_hubert(), tmp_path / "s", {"feature_size": 2}, model_type="mert_model")
    with pytest.raises(CheckpointError, match="feature_size 2 is not 1"):
        encoder(stereo, 4000, 40, 100)
