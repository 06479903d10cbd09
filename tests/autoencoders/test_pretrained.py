import pickle
from math import prod

import pytest
import torch

from autoencoders.base import media_size
from autoencoders.patches import Patched
from autoencoders.pretrained import digest
from core.errors import CheckpointError, ConfigError, ShapeError
from core.keys import generator
from tests.autoencoders.small import SMALL, pretrained, save


@pytest.fixture(scope="module", params=SMALL)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return save(kind, tmp_path_factory.mktemp(kind))


def some_media(kind: str, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, *SMALL[kind][2], generator=generator("media", kind)) * 2 - 1


def test_media_become_tokens_and_tokens_media_of_the_same_size(kind, folder):
    autoencoder, media = pretrained(kind, folder), some_media(kind)
    grid = autoencoder.grid(media_size(media))
    latents = autoencoder.encode(media)
    assert latents.shape == (2, prod(grid), autoencoder.spec.channels)
    assert latents.dtype == torch.float32
    again = autoencoder.decode(latents, media_size(media))
    assert again.shape == media.shape
    assert again.isfinite().all()
    assert not torch.equal(again[0], again[1])


def test_a_sample_does_not_depend_on_its_neighbors(kind, folder):
    autoencoder, media = pretrained(kind, folder), some_media(kind)
    latents, size = autoencoder.encode(media), media_size(media)
    assert torch.equal(autoencoder.encode(media[1:]), latents[1:])
    assert torch.equal(autoencoder.decode(latents[1:], size), autoencoder.decode(latents, size)[1:])


def test_noise_gives_samples_around_the_mean(kind, folder):
    autoencoder, media = pretrained(kind, folder), some_media(kind, 1)
    mean = autoencoder.encode(media)
    noise = torch.randn(mean.shape, generator=generator("noise"))
    if kind == "rae":
        with pytest.raises(ShapeError, match=f"{kind} predicts no distribution"):
            autoencoder.encode(media, noise)
        return
    up, down = autoencoder.encode(media, noise), autoencoder.encode(media, -noise)
    torch.testing.assert_close((up + down) / 2, mean)
    deviation = (up - mean) / noise
    assert (deviation > 0).all()
    with pytest.raises(ShapeError, match=f"{kind}, noise of the posterior: expected latents"):
        autoencoder.encode(media, noise[:, 1:])


def test_bf16_is_near_float32_and_comes_back_as_float32(kind, folder):
    media = some_media(kind, 1)
    exact, rough = pretrained(kind, folder), pretrained(kind, folder, precision="bf16")
    latents = exact.encode(media)
    nearly = rough.encode(media)
    assert nearly.dtype == torch.float32
    assert not torch.equal(nearly, latents)
    assert (nearly - latents).abs().mean() < 0.05 * latents.abs().mean()
    if exact.normalization is not None:  # statistics are read before the weights are rounded
        assert torch.equal(rough.normalization.mean, exact.normalization.mean)
        assert torch.equal(rough.normalization.std, exact.normalization.std)
    decoded = rough.decode(latents, media_size(media))
    assert decoded.dtype == torch.float32
    assert (decoded - exact.decode(latents, media_size(media))).abs().mean() < 0.05


def test_weights_are_frozen_and_never_in_train_mode(kind, folder):
    state = torch.random.get_rng_state()
    network = pretrained(kind, folder).load()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_digest_is_of_the_weights_whatever_the_precision(kind, folder, tmp_path):
    autoencoder = pretrained(kind, folder)
    seen = autoencoder.digest()
    assert len(seen) == 32
    assert pretrained(kind, folder, precision="bf16").digest() == seen
    assert Patched(autoencoder, 2, (1, 64, 64)).digest() == seen
    network = autoencoder.load()
    value = next(value for value in network.state_dict().values() if value.ndim > 1 and value.numel() > 3)
    value.view(-1)[3] += 1e-3
    network.save_pretrained(tmp_path)
    assert pretrained(kind, tmp_path).digest() != seen


def test_a_digest_counts_names_and_shapes():
    weights = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64)}
    assert digest(dict(reversed(weights.items()))) == digest(weights)
    assert digest({"c": weights["a"], "b": weights["b"]}) != digest(weights)
    assert digest(weights | {"a": torch.arange(6.0).reshape(2, 3)}) != digest(weights)
    assert digest(weights | {"a": torch.arange(6.0).bfloat16()}) == digest(weights)


def test_a_worker_is_sent_no_weights(kind, folder):
    autoencoder = pretrained(kind, folder)
    autoencoder.load()
    sent = pickle.dumps(autoencoder)
    assert len(sent) < 10_000
    size = media_size(some_media(kind, 1))
    again = pickle.loads(sent)
    assert again.grid(size) == autoencoder.grid(size)
    assert torch.equal(again.encode(some_media(kind, 1)), autoencoder.encode(some_media(kind, 1)))


def test_nothing_but_the_networks_work_needs_the_weights(kind, tmp_path):
    autoencoder, size = pretrained(kind, tmp_path / "nowhere"), media_size(some_media(kind))
    assert prod(autoencoder.grid(size)) > 0
    assert autoencoder.has_weights
    assert autoencoder.posterior_noise == (kind in ("sd_vae", "songbloom"))
    (tmp_path / "nowhere").mkdir()
    latents = torch.zeros(1, prod(autoencoder.grid(size)), autoencoder.spec.channels)
    for work in (
        autoencoder.load,
        lambda: autoencoder.encode(some_media(kind)),
        lambda: autoencoder.decode(latents, size),
        lambda: autoencoder.normalization,
    ):
        with pytest.raises(
            ConfigError, match=rf"autoencoder.path: .*nowhere' holds no config.json.*Kind '{kind}' needs"
        ):
            work()


def test_wrong_shapes_are_refused_before_the_weights_are_read(kind):
    autoencoder, media = pretrained(kind, "nowhere"), some_media(kind)
    with pytest.raises(ShapeError, match=f"{kind}: expected media of shape"):
        autoencoder.encode(media[0])
    with pytest.raises(ShapeError, match=f"{kind}: expected latents"):
        autoencoder.decode(torch.zeros(1, 1, 5), media_size(media))
    with pytest.raises(ShapeError, match="legal"):
        autoencoder.encode(media[..., :-1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_network_works_on_its_device_and_results_go_where_media_are(kind, folder):
    here, there = pretrained(kind, folder), pretrained(kind, folder).to("cuda")
    media = some_media(kind)
    latents = there.encode(media)
    assert latents.device.type == "cpu"
    assert there.encode(media.cuda()).device.type == "cuda"
    torch.testing.assert_close(latents, here.encode(media), rtol=2e-2, atol=2e-2)
    assert there.decode(latents, media_size(media)).device.type == "cpu"


def test_the_posterior_is_what_noise_is_added_to(kind, folder):
    autoencoder, media = pretrained(kind, folder), some_media(kind)
    mean, deviation = autoencoder.posterior(media)
    assert torch.equal(mean, autoencoder.encode(media))
    assert (deviation is None) == (kind == "rae")
    if deviation is not None:
        noise = torch.randn(mean.shape, generator=generator("noise"))
        assert torch.equal(mean + deviation * noise, autoencoder.encode(media, noise))


def test_other_weights_than_expected_are_refused_when_they_are_read(kind, folder):
    right, wrong = pretrained(kind, folder), pretrained(kind, folder)
    right.expect(pretrained(kind, folder).digest())
    right.load()
    wrong.expect("0123")
    wrong.grid(media_size(some_media(kind)))  # known without them
    with pytest.raises(CheckpointError, match=r"are not those that the latents were encoded with \(digest 0123\)"):
        wrong.load()
