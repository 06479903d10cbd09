import pytest
import torch

from autoencoders.songbloom_original import SETTINGS, WEIGHTS, original_modules
from core.errors import CheckpointError, ConfigError
from tests.autoencoders.originals import golden, narrow, shapes
from tests.autoencoders.recipe import uniform
from tests.autoencoders.small import diffusers, pretrained
from tests.autoencoders.songbloom_files import settings, write

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
SECONDS = 4 * 1920, 1, 1


@pytest.fixture(scope="module")
def state():
    return narrow("songbloom")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory, state):
    return pretrained("songbloom", write(tmp_path_factory.mktemp("songbloom"), {"state_dict": state}))


def decoded(autoencoder) -> torch.Tensor:
    return autoencoder.decode(uniform("latents", (1, 64, 4)).transpose(1, 2), SECONDS)


def test_encoding_is_that_of_the_authors_code(autoencoder):
    """The golden values were computed in float64: what differs is the rounding of float32."""
    media, expected = uniform("media", (1, 2, 4 * 1920)), golden("songbloom")
    noise = expected["noise"].transpose(1, 2)
    torch.testing.assert_close(autoencoder.encode(media), expected["mean"].transpose(1, 2), atol=1e-5, rtol=0)
    sample = autoencoder.encode(media, noise)
    torch.testing.assert_close(sample, expected["sample"].transpose(1, 2), atol=1e-5, rtol=0)
    assert (sample - expected["mean"].transpose(1, 2)).abs().max() > 0.5


def test_decoding_is_that_of_the_authors_code(autoencoder):
    expected = golden("songbloom")["decoded"]
    torch.testing.assert_close(decoded(autoencoder), expected, atol=1e-6, rtol=0)
    assert expected.abs().max() > 0.1


def test_the_deviation_never_vanishes(autoencoder, state, tmp_path):
    """softplus(scale) + 1e-4, with a scale so low that softplus is 0."""
    silent = {**state, "encoder.layers.7.bias": torch.full((128,), -200.0)}
    network = pretrained("songbloom", write(tmp_path, {"state_dict": silent})).load()
    with torch.no_grad():
        std = network.encode(uniform("media", (1, 2, 4 * 1920))).latent_dist.std
    torch.testing.assert_close(std, torch.full_like(std, 1e-4), rtol=1e-6, atol=0)


def test_every_tensor_of_the_published_size_has_its_place():
    published = shapes("songbloom", "published")
    with torch.device("meta"):
        network = diffusers.AutoencoderOobleck(downsampling_ratios=[2, 4, 4, 6, 10], sampling_rate=48_000)
    modules, own = original_modules(5), network.state_dict()
    assert len(published) == 365
    assert {f"{modules[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}" for n in own} == set(published)
    for name, value in own.items():
        module, _, tensor = name.rpartition(".")
        assert [n for n in value.shape if n > 1] == [n for n in published[f"{modules[module]}.{tensor}"] if n > 1]


def modern(name: str) -> str:
    name = name.replace("weight_g", "parametrizations.weight.original0")
    return name.replace("weight_v", "parametrizations.weight.original1")


@pytest.mark.parametrize(
    ("prefix", "wrap", "rename"),
    [
        ("", False, str),
        ("", True, modern),
        ("autoencoder.", True, str),
        ("pretransform.model.", True, modern),
    ],
)
def test_other_wrappings_of_the_same_weights(tmp_path, autoencoder, state, prefix, wrap, rename):
    named = {f"{prefix}{rename(name)}": value for name, value in state.items()}
    if prefix:
        named["discriminator.layers.0.weight"] = torch.ones(3)  # of the training, not of the autoencoder
    other = pretrained("songbloom", write(tmp_path, {"state_dict": named, "step": 5} if wrap else named))
    assert torch.equal(decoded(other), decoded(autoencoder))


def test_a_safetensors_file_of_any_name(tmp_path, autoencoder, state):
    from safetensors.torch import save_file

    write(tmp_path, {})
    (tmp_path / WEIGHTS).unlink()
    save_file(state, tmp_path / "other.safetensors")
    assert torch.equal(decoded(pretrained("songbloom", tmp_path)), decoded(autoencoder))


def test_a_final_tanh_is_the_default_of_the_authors(tmp_path, autoencoder, state):
    described = settings()
    del described["model"]["decoder"]["config"]["final_tanh"]
    other = pretrained("songbloom", write(tmp_path, {"state_dict": state}, described))
    torch.testing.assert_close(decoded(other), decoded(autoencoder).tanh())


def test_tensors_that_do_not_fit_are_named(tmp_path, state):
    wrong = {name: value for name, value in state.items() if name != "encoder.layers.3.layers.1.layers.2.beta"}
    wrong["decoder.layers.9.bias"] = torch.zeros(1)
    wrong["decoder.layers.0.bias"] = torch.zeros(9)
    with pytest.raises(CheckpointError) as error:
        pretrained("songbloom", write(tmp_path, {"state_dict": wrong})).load()
    assert str(error.value) == (
        f"{tmp_path / WEIGHTS}: not the weights of kind 'songbloom' in its authors' layout: tensors "
        "missing: encoder.layers.3.layers.1.layers.2.beta; not of the network: decoder.layers.9.bias; "
        "of another shape: decoder.layers.0.bias (9,) for (8,)"
    )


class Runs:
    def __reduce__(self):
        return print, ("code of the file was run",)


def test_a_checkpoint_is_data_and_not_a_program(tmp_path, capsys):
    write(tmp_path, {})
    (tmp_path / WEIGHTS).unlink()
    torch.save({"state_dict": Runs()}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"autoencoder_music_dsp1920\.ckpt: holds more than tensors"):
        pretrained("songbloom", tmp_path).load()
    assert capsys.readouterr().out == ""


def test_a_damaged_checkpoint_is_named(tmp_path, state):
    file = write(tmp_path, {"state_dict": state}) / WEIGHTS
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"autoencoder_music_dsp1920.ckpt: cannot be read"):
        pretrained("songbloom", tmp_path).load()


def change(**values) -> dict:
    """The settings with values put in place: `encoder__strides` is that of the encoder's config."""
    described = settings()
    for name, value in values.items():
        part, _, key = name.partition("__")
        place = (
            described["model"][part]["config"] if key else described if part == "sample_rate" else described["model"]
        )
        place[key or part] = value
    return described


@pytest.mark.parametrize(
    ("described", "problem"),
    [
        (change(sample_rate=44_100), "sample_rate 44100, kind 'songbloom' needs 48000"),
        (change(bottleneck={"type": "rvq"}), "bottleneck 'rvq', kind 'songbloom' needs 'vae'"),
        (change(bottleneck=None), "bottleneck None, kind 'songbloom' needs 'vae'"),
        (change(pretransform={"type": "dac"}), "pretransform {'type': 'dac'}, kind 'songbloom' needs None"),
        (change(latent_dim=32), r"latent_dim \(32, 64\), kind 'songbloom' needs \(64, 64\)"),
        (change(encoder__use_snake=False), r"use_snake \(False, True\), kind 'songbloom' needs \(True, True\)"),
        (change(decoder__antialias_activation=True), r"antialias_activation \(False, True\)"),
        (change(decoder__use_nearest_upsample=True), "use_nearest_upsample True"),
        (change(encoder__in_channels=1), r"audio channels \(2, 1, 2\)"),
        (change(decoder__strides=[10, 6, 4, 4, 2]), r"strides of the decoder \[10, 6, 4, 4, 2\]"),
        (change(encoder__strides=[2, 4, 4, 8, 8], downsampling_ratio=2048), r"samples per token \(2048, 2048\)"),
        (change(encoder__strides=[2, 4, 4, 4, 15]), r"odd strides \[15\], kind 'songbloom' needs \[\]"),
        (change(encoder__c_mults=[1, 1]), r"number of c_mults 2, kind 'songbloom' needs 5"),
        (change(encoder__channels=64), r"latent_dim and channels of the encoder \(128, 64\)"),
    ],
)
def test_other_settings_are_refused(tmp_path, state, described, problem):
    with pytest.raises(ConfigError, match=problem):
        pretrained("songbloom", write(tmp_path, {"state_dict": state}, described)).load()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": {"encoder": 5}}', '{"model": {"encoder": {"config": {}}}}']
)
def test_settings_that_describe_no_autoencoder(tmp_path, text):
    write(tmp_path, {})
    (tmp_path / SETTINGS).write_text(text)
    with pytest.raises(ConfigError, match="does not describe an autoencoder"):
        pretrained("songbloom", tmp_path).load()


def test_weights_that_are_not_there_or_ambiguous(tmp_path, state):
    write(tmp_path, {}, name="a.ckpt")
    write(tmp_path, {}, name="b.ckpt")
    with pytest.raises(
        ConfigError, match=r"needs its weights beside it: autoencoder_music_dsp1920.ckpt, .* a.ckpt, b.ckp"
    ):
        pretrained("songbloom", tmp_path).load()
    for name in "ab":
        (tmp_path / f"{name}.ckpt").unlink()
    with pytest.raises(ConfigError, match="found none"):
        pretrained("songbloom", tmp_path).load()
    with pytest.raises(ConfigError, match=r"or a folder with stable_audio_1920_vae.json and autoencoder_music_dsp1920"):
        pretrained("songbloom", tmp_path / "elsewhere").load()


def test_the_authors_repository_on_the_hub(tmp_path, monkeypatch, autoencoder, state):
    import huggingface_hub

    folder = write(tmp_path, {"state_dict": state})

    def download(repository: str, file: str) -> str:
        assert repository == "CypressYang/SongBloom"
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert torch.equal(decoded(pretrained("songbloom", "CypressYang/SongBloom")), decoded(autoencoder))
