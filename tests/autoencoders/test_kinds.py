import pytest

from autoencoders.kinds import KINDS, autoencoder_problems, build_pretrained
from autoencoders.pretrained import PretrainedConfig, VariationalConfig
from core.errors import ConfigError
from core.training.config import validated
from modalities.table import MODALITIES


def problems(modality: str, **settings) -> list[str]:
    """What is said of the section `autoencoder` of a file."""
    config = KINDS[modality].get(settings["kind"])
    try:
        validated(MODALITIES[modality].settings, {"autoencoder": settings})
    except ConfigError as error:
        return [line for line in error.problems if line.startswith("autoencoder.")]
    assert config is not None
    return autoencoder_problems(config(**settings), modality)


@pytest.mark.parametrize(("modality", "kind"), [(m, kind) for m, kinds in KINDS.items() for kind in kinds])
def test_every_kind_is_accepted_with_what_it_reads(modality, kind):
    known = KINDS[modality][kind]
    assert known().kind == kind
    if not issubclass(known, PretrainedConfig):
        assert problems(modality, kind=kind) == []
        return
    assert known.autoencoder.name == kind
    assert problems(modality, kind=kind, path="weights", precision="bf16") == []
    posterior = "".join(problems(modality, kind=kind, path="weights", posterior="mean"))
    assert ("posterior: unknown key of kind 'rae'" in posterior) != issubclass(known, VariationalConfig)
    assert problems(modality, kind=kind) == [
        f"autoencoder.path: kind {kind!r} has weights: set their folder or their name on the hub"
    ]


def test_a_kind_belongs_to_its_modality():
    assert problems("image", kind="wan22") == ["autoencoder.kind: 'wan22' is not one of pixels, sd_vae, flux2, rae."]
    assert problems("video", kind="wan21")[0].endswith("Did you mean: 'wan22'?")


def test_settings_of_other_kinds_are_unknown():
    found = problems("image", kind="pixels", path="weights", precision="fp32", posterior="mean")
    assert [line.split(":")[0] for line in found] == [
        "autoencoder.path",
        "autoencoder.precision",
        "autoencoder.posterior",
    ]


def test_wrong_values_are_named_with_the_nearest():
    found = problems("image", kind="sd_vae", path="weights", precision="fp16", posterior="means")
    assert found[0].startswith("autoencoder.precision: 'fp16' is not one of fp32, bf16.")
    assert found[1] == "autoencoder.posterior: 'means' is not one of mean, sample. Did you mean: 'mean'?"


def test_the_posterior_is_the_publishers_unless_set():
    def drawn(kind: str, **settings) -> bool:
        return build_pretrained(KINDS["image"][kind](path="x", **settings), (1, 64, 64)).posterior_noise

    assert drawn("sd_vae")
    assert not drawn("sd_vae", posterior="mean")
    assert not drawn("flux2")
    assert drawn("flux2", posterior="sample")
    assert not drawn("rae")


@pytest.mark.parametrize(("kind", "stride", "lowest"), [("sd_vae", 8, 512), ("flux2", 16, 512), ("wan22", 16, 512)])
def test_tiles_are_whole_cells_and_longer_than_their_overlaps(kind, stride, lowest):
    modality = "video" if kind == "wan22" else "image"

    def found(tile) -> list[str]:
        return problems(modality, kind=kind, path="weights", tile=tile)

    assert found(lowest) == found(1024) == []
    assert found(700) == [
        f"autoencoder.tile: 700 is not a multiple of {stride} pixels from {lowest} up; the nearest: "
        f"{700 // stride * stride} or {(700 // stride + 1) * stride}"
    ]
    for wrong in (lowest - stride, 0):
        assert found(wrong) == [f"autoencoder.tile: {wrong!r} is not a multiple of {stride} pixels from {lowest} up"]
    for wrong in (True, 512.0):
        config = KINDS[modality][kind](path="weights", tile=wrong)
        assert config.problems() == [f"tile: {wrong!r} is not a multiple of {stride} pixels from {lowest} up"]


def test_a_kind_without_tiles_has_no_such_setting():
    for kind in ("pixels", "rae"):
        weights = {} if kind == "pixels" else {"path": "weights"}
        (line,) = problems("image", kind=kind, tile=512, **weights)
        assert line.startswith(f"autoencoder.tile: unknown key of kind {kind!r}; allowed: kind")
        assert line.endswith("It belongs to kind sd_vae, flux2.")
