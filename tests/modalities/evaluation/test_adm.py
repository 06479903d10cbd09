import zipfile

import numpy as np
import pytest
import torch

from core.errors import DataError, ShapeError
from core.keys import generator
from modalities.evaluation.adm import (
    Reference,
    count_samples,
    read_reference,
    read_samples,
    write_reference,
    write_samples,
)


def levels(count: int = 7, height: int = 4, width: int = 6) -> torch.Tensor:
    draw = generator("adm", count)
    return torch.randint(0, 256, (count, 3, height, width), generator=draw, dtype=torch.uint8)


def reference() -> Reference:
    draw = np.random.default_rng(0)
    return Reference(
        mu=draw.normal(size=2048), sigma=np.eye(2048), mu_s=draw.normal(size=2023), sigma_s=2 * np.eye(2023)
    )


def test_numpy_reads_what_we_write_and_the_levels_survive(tmp_path):
    pixels = levels()
    media = pixels.float() / 127.5 - 1
    path = write_samples(tmp_path / "samples", iter(media.split(3)), 7)
    assert path.name == "samples.npz"
    with np.load(path) as arrays:
        assert arrays.files == ["arr_0"]
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], pixels.permute(0, 2, 3, 1).numpy())
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as entry:
        assert np.lib.format.read_magic(entry) == (1, 0)  # the version that the evaluator streams
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.npz"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_we_read_what_numpy_writes(tmp_path, save):
    pixels = levels()
    save(tmp_path / "samples.npz", pixels.permute(0, 2, 3, 1).contiguous().numpy())  # as guided-diffusion writes
    assert count_samples(tmp_path / "samples.npz") == (7, 4, 6)
    parts = list(read_samples(tmp_path / "samples.npz", batch=3))
    assert [len(part) for part in parts] == [3, 3, 1]
    media = torch.cat(parts)
    assert media.dtype == torch.float32
    assert torch.equal(((media + 1) * 127.5).round().to(torch.uint8), pixels)


def test_writing_holds_one_batch_at_a_time(tmp_path):
    alive = []

    def batches():
        for start in range(4):
            alive.append(start)
            yield torch.full((2, 3, 2, 2), start / 4)
            assert (tmp_path / "a.npz.part").exists()
            assert not (tmp_path / "a.npz").exists()

    write_samples(tmp_path / "a.npz", batches(), 8)
    assert alive == [0, 1, 2, 3]
    assert count_samples(tmp_path / "a.npz") == (8, 2, 2)


@pytest.mark.parametrize(("count", "message"), [(5, "more images came, 5"), (9, "7 images came, 9 were")])
def test_a_wrong_count_leaves_no_file(tmp_path, count, message):
    with pytest.raises(ShapeError, match=message):
        write_samples(tmp_path / "a", levels().float().div(127.5).sub(1).split(2), count)
    assert list(tmp_path.iterdir()) == []


def test_a_break_leaves_the_old_file_alone(tmp_path):
    path = write_samples(tmp_path / "a", [torch.zeros(1, 3, 2, 2)], 1)
    before = path.read_bytes()
    with pytest.raises(ShapeError, match=r"expected images \(B, 3, 2, 2\), got \(1, 3, 4, 4\)"):
        write_samples(path, [torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4)], 2)
    assert path.read_bytes() == before


def test_reference_statistics_round_trip(tmp_path):
    ours = reference()
    found = read_reference(write_reference(tmp_path / "ref", ours))
    for name in ("mu", "sigma", "mu_s", "sigma_s"):
        assert np.array_equal(getattr(found, name), getattr(ours, name))
    assert found.samples == 0


def test_a_published_reference_has_images_too(tmp_path):
    ours = reference()
    arrays = {name: getattr(ours, name).astype(np.float32) for name in ("mu", "sigma", "mu_s", "sigma_s")}
    np.savez(tmp_path / "virtual.npz", arr_0=np.zeros((5, 8, 8, 3), np.uint8), **arrays)
    found = read_reference(tmp_path / "virtual.npz")
    assert found.samples == 5
    assert found.mu.dtype == np.float64
    assert next(read_samples(tmp_path / "virtual.npz")).shape == (5, 3, 8, 8)


def test_a_reference_may_be_statistics_of_other_programs_or_images_alone(tmp_path):
    images = read_reference(write_samples(tmp_path / "a", [torch.zeros(2, 3, 2, 2)], 2))
    assert (images.mu, images.sigma, images.mu_s, images.samples) == (None, None, None, 2)
    np.savez(tmp_path / "fid.npz", mu=np.ones(2048, np.float32), sigma=np.eye(2048))
    pooled = read_reference(tmp_path / "fid.npz")
    assert np.array_equal(pooled.mu, np.ones(2048))
    assert (pooled.mu_s, pooled.sigma_s, pooled.samples) == (None, None, 0)


@pytest.mark.parametrize("held", [["mu"], ["mu_s", "sigma_s"], ["sigma", "arr_0"], ["labels"]])
def test_half_of_a_pair_is_no_reference(held, tmp_path):
    np.savez(tmp_path / "half.npz", **dict.fromkeys(held, np.zeros((1, 2, 2, 3), np.uint8)))
    with pytest.raises(DataError, match=f"holds {', '.join(held)}; a reference holds mu and sigma"):
        read_reference(tmp_path / "half.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(64)}, r"mu is \(64,\), inception features have \(2048,\)"),
        ({"mu_s": np.full(2023, np.nan)}, "mu_s holds values that are not finite"),
    ],
)
def test_wrong_statistics_are_refused(tmp_path, arrays, message):
    ours = reference()
    whole = {name: getattr(ours, name) for name in ("mu", "sigma", "mu_s", "sigma_s")} | arrays
    np.savez(tmp_path / "ref.npz", **whole)
    with pytest.raises(DataError, match=message):
        read_reference(tmp_path / "ref.npz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"arr_0 is float32 \(2, 4, 4, 3\), expected uint8"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"arr_0 is uint8 \(2, 3, 4, 4\), expected uint8 \(N, H, W, 3\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"arr_0 is uint8 \(0, 4, 4, 3\)"),
    ],
)
def test_wrong_images_are_refused(tmp_path, array, message):
    np.savez(tmp_path / "a.npz", array)
    with pytest.raises(DataError, match=message):
        next(read_samples(tmp_path / "a.npz"))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none.npz: not an .npz file: No such file"):
        count_samples(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"not an \.npz file"):
        read_reference(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    with pytest.raises(DataError, match=r"holds labels\.npy, but no arr_0"):
        count_samples(tmp_path / "other.npz")


def test_an_array_that_ends_early_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive, archive.open("arr_0.npy", "w") as entry:
        header = {"descr": "|u1", "fortran_order": False, "shape": (3, 2, 2, 3)}
        np.lib.format.write_array_header_1_0(entry, header)
        entry.write(bytes(2 * 12))
    parts = read_samples(tmp_path / "short.npz", batch=2)
    assert len(next(parts)) == 2
    with pytest.raises(DataError, match="ends after 2 of 3 images"):
        next(parts)
