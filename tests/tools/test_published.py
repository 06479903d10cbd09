"""Frozen networks of published sizes: the sizes are the published ones, and the counts those of real networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoencoders.kinds import KINDS
from autoencoders.songbloom import SongBloomConfig
from core.errors import ConfigError
from modalities.conditioning import TextEncoder, TextEncoderConfig
from modalities.conditioning.kinds import KINDS as TEXT_KINDS
from tools.dry_run.published import autoencoder_flops, text_flops

MEDIA = {"sd_vae": (2, 3, 32, 32), "flux2": (2, 3, 32, 32), "wan22": (2, 5, 3, 32, 48)}
MODALITY = {"sd_vae": "image", "flux2": "image", "wan22": "video"}


# Parameters in millions: of the published files.
@pytest.mark.parametrize(("kind", "millions"), [("sd_vae", 83.65), ("flux2", 84.05), ("wan22", 704.69)])
def test_autoencoders_have_the_published_size(kind, millions):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    published = KINDS[MODALITY[kind]][kind].autoencoder.published
    assert published is not None
    name, sizes = published
    with torch.device("meta"):
        network = getattr(diffusers, name)(**sizes)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_text_encoder_has_the_published_size():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    with torch.device("meta"):
        network = transformers.Qwen3Model(transformers.Qwen3Config(**dict(TEXT_KINDS["qwen3"].sizes)))
    embedding = network.embed_tokens.weight.numel()
    whole = sum(parameter.numel() for parameter in network.parameters())
    assert whole / 1e9 == pytest.approx(4.0, abs=0.05)  # its card: 4.0B, 3.6B without the embedding
    assert (whole - embedding) / 1e9 == pytest.approx(3.6, abs=0.05)


@pytest.mark.parametrize("kind", MEDIA)
def test_an_autoencoder_counts_as_the_real_one_does(kind, monkeypatch):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from tests.autoencoders import small

    network = getattr(small, kind)().eval()
    sizes = {name: value for name, value in network.config.items() if not name.startswith("_")}
    config = KINDS[MODALITY[kind]][kind](path="nowhere")
    monkeypatch.setattr(config.autoencoder, "published", (type(network).__name__, sizes))
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        config.autoencoder.run_encoder(network, torch.zeros(MEDIA[kind]))
    found = autoencoder_flops(config, MEDIA[kind])
    assert found == counter.get_total_flops() > 0


def test_kinds_without_known_sizes_count_nothing():
    assert autoencoder_flops(SongBloomConfig(path="nowhere"), (1, 2, 1920)) is None
    assert (
        text_flops(TextEncoder(TextEncoderConfig("qwen3", "nobody/nothing"), "nobody/nothing"), readable=False) is None
    )


@pytest.mark.parametrize(
    ("kind", "layers"), [("t5", []), ("clip", []), ("qwen3", [1, 2]), ("qwen3", [3]), ("umt5", [])]
)
def test_a_text_encoder_counts_as_the_real_one_does_from_its_config_alone(kind, layers, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.modalities.conditioning.small import make_network

    network = make_network(kind, whole=False).eval()
    network.config.save_pretrained(tmp_path)
    width = (network.config.hidden_size if kind == "clip" else 16) * max(1, len(layers))
    config = TextEncoderConfig(kind, str(tmp_path), max_tokens=10, layers=layers, width=width)
    encoder = TextEncoder(config, str(tmp_path))
    if layers:
        del network.layers[max(layers) :]
    ids = torch.zeros(1, 10, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(input_ids=ids, attention_mask=torch.ones_like(ids), **dict(encoder.kind.arguments))
    assert text_flops(encoder, readable=True) == counter.get_total_flops() > 0


def test_an_unreadable_config_is_refused(tmp_path: Path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        text_flops(TextEncoder(TextEncoderConfig("t5", str(tmp_path)), str(tmp_path)), readable=True)
