import fractions

import pytest
import torch

from autoencoders import flux2, sd_vae, wan22
from autoencoders.base import media_size
from autoencoders.published import find_file, load_tensors, network_from
from core.errors import CheckpointError, ConfigError
from tests.autoencoders.originals import FILES, MEDIA, golden, narrow, shapes, write
from tests.autoencoders.recipe import uniform
from tests.autoencoders.small import pretrained, save

# Of values near 1. The authors' code of Wan passes its upsampled features through float32, whatever its precision.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
WAN_DECODED = 1e-6
MODULES = {"flux2": flux2, "wan22": wan22, "sd_vae": sd_vae}


@pytest.fixture(scope="module", params=FILES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def file(kind, tmp_path_factory):
    return write(narrow(kind), tmp_path_factory.mktemp(kind) / FILES[kind])


def to_maps(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return tokens.transpose(1, 2).reshape(like.shape)


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b).abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_encoding_normalization_and_decoding_are_those_of_the_authors_code(kind, file, dtype):
    """The golden values were recorded by running it (tests/autoencoders/golden/record.py)."""
    autoencoder, wanted = pretrained(kind, file), golden(kind)
    media, white = uniform("media", MEDIA[kind]).to(dtype), uniform("white", wanted["normalized"].shape).to(dtype)
    if kind == "wan22":
        media = media.transpose(1, 2)
    grid = autoencoder.grid(media_size(media))
    raw = autoencoder.normalization.denormalize(white.flatten(2).transpose(1, 2))
    if dtype == torch.float32:
        (mean, std), decoded = autoencoder.posterior(media), autoencoder.decode(raw, media_size(media))
    else:  # the same functions, without the rounding that hides small differences
        network = autoencoder.load().double()
        mean, std = autoencoder.run_encoder(network, media).chunk(2, dim=-1)
        decoded = autoencoder.run_decoder(network, raw, grid)
    if kind == "wan22":
        decoded = decoded.transpose(1, 2)
    normalized = autoencoder.normalization.normalize(mean)
    assert wanted["decoded"].std() > 0.1
    assert worst(to_maps(std, wanted["std"]), wanted["std"]) < TOLERANCE[dtype]
    # Published statistics are kept in float32.
    assert worst(to_maps(normalized, wanted["normalized"]), wanted["normalized"]) < max(TOLERANCE[dtype], 1e-6)
    decoding = max(TOLERANCE[dtype], WAN_DECODED if kind == "wan22" else 1e-6)
    assert worst(decoded, wanted["decoded"]) < decoding


def test_the_published_network_has_exactly_these_tensors(kind):
    """Names and shapes of the authors' class at its own size; the tensors hold nothing."""
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes(kind, "published").items()}
    network = network_from(kind, "file", state, MODULES[kind].LAYOUT)
    assert sum(value.numel() for value in network.state_dict().values()) == sum(v.numel() for v in state.values())
    assert all(seen == wanted for seen, wanted in MODULES[kind]._constants(network.config).values())


def test_a_folder_with_the_file_is_as_good(kind, file):
    assert find_file(str(file.parent), MODULES[kind].LAYOUT.files) == file
    autoencoder = pretrained(kind, file.parent)
    assert autoencoder.digest() == pretrained(kind, file).digest() != ""


def test_a_folder_of_both_layouts_is_read_as_diffusers(kind, file, tmp_path):
    (tmp_path / FILES[kind]).symlink_to(file)
    save(kind, tmp_path / "vae")
    assert find_file(str(tmp_path), MODULES[kind].LAYOUT.files) is None
    assert pretrained(kind, tmp_path).digest() == pretrained(kind, tmp_path / "vae").digest()


def test_the_same_weights_have_the_same_digest_in_either_layout(kind, file, tmp_path):
    autoencoder = pretrained(kind, file)
    autoencoder.load().save_pretrained(tmp_path)
    assert pretrained(kind, tmp_path).digest() == autoencoder.digest()
    state = narrow(kind)
    state[max(name for name in state if name.endswith("weight"))].flatten()[7] += 1e-3
    other = write(state, tmp_path / FILES[kind])
    assert pretrained(kind, other).digest() != autoencoder.digest()


def test_half_precision_files_become_float32(kind, file, tmp_path):
    state = {name: value.half() if value.is_floating_point() else value for name, value in narrow(kind).items()}
    network = pretrained(kind, write(state, tmp_path / FILES[kind])).load()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_what_does_not_fit_is_named_as_in_the_file(kind, tmp_path):
    state = narrow(kind)
    missing, other = [name for name in state if name.startswith("decoder.mid") and name.endswith("bias")][:2]
    del state[missing]
    state["decoder.more"], state[other] = torch.zeros(1), torch.zeros(3, 3, 3)
    with pytest.raises(CheckpointError) as error:
        pretrained(kind, write(state, tmp_path / FILES[kind])).load()
    text = str(error.value)
    assert f"missing: {missing};" in text
    assert "not of the network: decoder.more;" in text
    assert f"of another shape: {other} (3, 3, 3) for " in text


def test_a_network_of_other_constants_is_refused(tmp_path):
    state = narrow("sd_vae")
    for name in ("quant_conv", "post_quant_conv"):
        state[f"{name}.weight"] = torch.cat([torch.cat([state[f"{name}.weight"]] * 2)] * 2, dim=1)
        state[f"{name}.bias"] = torch.cat([state[f"{name}.bias"]] * 2)
    for name, dim in (("encoder.conv_out.weight", 0), ("encoder.conv_out.bias", 0), ("decoder.conv_in.weight", 1)):
        state[name] = torch.cat([state[name]] * 2, dim=dim)
    with pytest.raises(ConfigError, match="has latent_channels 8, kind 'sd_vae' needs 4"):
        pretrained("sd_vae", write(state, tmp_path / "model.ckpt")).load()


def test_a_file_of_another_layout_is_refused(kind, tmp_path):
    folder = save(kind, tmp_path)
    with pytest.raises(CheckpointError, match=r"not the weights of kind .* a file of diffusers is read as its folder"):
        pretrained(kind, folder / "diffusion_pytorch_model.safetensors").load()


def test_the_rest_of_a_stable_diffusion_file_is_not_read(tmp_path):
    whole = {f"first_stage_model.{name}": value for name, value in narrow("sd_vae").items()}
    whole |= {"model.diffusion_model.out.weight": torch.zeros(3), "cond_stage_model.x": torch.zeros(2)}
    alone = narrow("sd_vae") | {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    digests = {
        pretrained("sd_vae", write(state, tmp_path / f"{number}.safetensors")).digest()
        for number, state in enumerate((whole, alone, narrow("sd_vae")))
    }
    assert len(digests) == 1


def test_attention_may_be_of_matrices(tmp_path):
    state = narrow("sd_vae")
    for name, value in state.items():
        if ".attn_1." in name and value.ndim == 4:
            state[name] = value.flatten(1)
    file = write(state, tmp_path / "a.safetensors")
    assert (
        pretrained("sd_vae", file).digest()
        == pretrained("sd_vae", write(narrow("sd_vae"), tmp_path / "b.ckpt")).digest()
    )


def test_a_pickle_that_holds_more_than_tensors_is_not_run(tmp_path):
    file = tmp_path / "Wan2.2_VAE.pth"
    torch.save({"state_dict": narrow("wan22"), "hook": fractions.Fraction(1, 2)}, file)
    with pytest.raises(CheckpointError, match=r"holds more than tensors, which is not read.*safetensors"):
        load_tensors(file)


@pytest.mark.parametrize("name", ["ae.safetensors", "Wan2.2_VAE.pth"])
@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: .*(cannot be read|damaged)"):
        load_tensors(tmp_path / name)


def test_a_truncated_file(kind, file, tmp_path):
    short = tmp_path / file.name
    short.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cannot be read|damaged"):
        load_tensors(short)


def test_a_file_that_holds_no_names_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="expected named tensors"):
        load_tensors(tmp_path / "x.pth")
