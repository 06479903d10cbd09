"""A modality that the project does not have, beside images: one file (this one, with an adapter) and one row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from autoencoders.base import LatentSpec
from autoencoders.config import AutoencoderConfig
from autoencoders.transforms import WeightFree
from configs.runs import load_run
from core.errors import ConfigError, DataError
from modalities import table
from modalities.base import AutoencoderAdapter, Known, Media, Record
from modalities.table import MODALITIES, Modality
from tests.tools.tiny import CONFIG, train
from tools.cli import main

STEPS, WIDTH = 6, 3  # of pressure at three fingers


@dataclass
class TouchConfig:
    steps: int = STEPS
    autoencoder: AutoencoderConfig = field(default_factory=lambda: AutoencoderConfig(kind="vectors"))

    def problems(self) -> list[str]:
        return [] if self.steps > 0 else [f"steps: {self.steps} must be at least 1"]


class Vectors(WeightFree):
    spec = LatentSpec(WIDTH, (1, 1, 1))

    def grid(self, size):
        return size

    def encode(self, media: Tensor, noise: Tensor | None = None) -> Tensor:
        return media

    def decode(self, latents: Tensor, size) -> Tensor:
        return latents


class TouchAdapter(AutoencoderAdapter):
    """Sequences (steps, WIDTH) of numbers, a token a step."""

    modality = "touch"
    known_files = {"touch": "a sequence that is given as a whole"}  # noqa: RUF012

    def __init__(self, config: TouchConfig):
        if found := config.problems():
            raise ConfigError(found)
        self.config = config
        super().__init__(Vectors(), (config.steps, 1, 1))

    def seconds(self) -> Tensor:
        return (torch.arange(self.config.steps, dtype=torch.float64) + 0.5) / 4

    def load(self, record: Record, generator: torch.Generator) -> Tensor:
        data = record.media.read_bytes() if isinstance(record.media, Path) else record.media
        values = np.frombuffer(data, np.float32)
        if len(values) != self.config.steps * WIDTH:
            raise DataError(f"{record.origin}: {len(values)} numbers")
        return torch.tensor(values).reshape(self.config.steps, WIDTH)

    def stand_in(self) -> Media:
        return Media(np.zeros(self.config.steps * WIDTH, np.float32).tobytes())

    def known_from(self, files: Mapping[str, Record], draw: Callable[[], torch.Generator]) -> Known:
        return Known.whole(self, self.load(files["touch"], draw()))

    def write(self, media: Tensor, path: Path) -> Path:
        path = path.with_name(path.name + ".f32")
        path.write_bytes(media.numpy().astype(np.float32).tobytes())
        return path


@pytest.fixture
def row(monkeypatch):
    """The one row."""
    monkeypatch.setitem(MODALITIES, "touch", Modality(TouchConfig, TouchAdapter, 1.0, 4, 0.25))


@pytest.fixture
def config(row, tmp_path: Path) -> Path:
    """Images, touches, and records that have both (whose image is the synthetic one of another stream's kind)."""
    rng = np.random.default_rng(0)
    rows = [
        {"touch": rng.normal(i % 2, 1, (STEPS, WIDTH)).astype(np.float32).tobytes(), "caption": f"go {i % 2}"}
        for i in range(20)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = CONFIG.read_text().splitlines()
    first, end = lines.index("  video:"), lines.index("condition:")
    lines[first:end] = [
        "  moves:",
        "    modality: touch",
        "    batch: 4",
        "    mask_ratio: 0.5",
        f"    data: {{kind: parquet, path: {tmp_path / 'a.parquet'}, media_field: touch}}",
        f"    media: {{steps: {STEPS}}}",
        "    sampling: {steps: 3}",
        "  twice:",
        "    batch: 2",
        f"    data: {{kind: parquet, path: {tmp_path / 'a.parquet'}, media_field: touch}}",
        "    parts:",
        "      one: {modality: touch, media: {}}",
        "      two: {modality: touch, media: {}}",
        "    modes: {one_given: 0.3}",
        "    sampling: {steps: 3}",
        "",
    ]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def generate(run: Path, stream: str, out: Path, *options: str) -> int:
    return main(["generate", stream, "--run", str(run), "--out", str(out), "--prompt", "go 1", *options])


def test_it_trains_generates_and_runs_dry_beside_images(config, tmp_path, capsys):
    assert main(["train", str(config), "--dry-run", f"run={tmp_path / 'dry'}"]) == 0
    told = capsys.readouterr().out
    assert f"{STEPS} x 1 x 1 (t, h, w) of {WIDTH} channels" in told
    absent = [f"streams.{name}.data.path=nowhere" for name in ("moves", "twice")]
    assert main(["train", str(config), "--dry-run", *absent]) == 0
    assert capsys.readouterr().out.count("not there: ") == 2
    run = tmp_path / "run"
    assert train(run, "training.steps=6", config=config) == 0
    loaded = load_run(run)
    assert {"image", "touch"} == set(loaded.generator.normalization)
    assert {"image", "touch"} == set(loaded.generator.trunk.media_in)

    assert generate(run, "moves", tmp_path / "moves", "--number", "2") == 0
    values = np.fromfile(tmp_path / "moves" / "0001-go-1.f32", np.float32)
    assert values.shape == (STEPS * WIDTH,)
    assert np.isfinite(values).all()
    assert generate(run, "image", tmp_path / "image") == 0
    assert (tmp_path / "image" / "0000-go-1.png").exists()

    # Several parts of one modality: a file each, and the option says which one it is for.
    given = np.arange(STEPS * WIDTH, dtype=np.float32) / 10
    given.tofile(tmp_path / "given.f32")
    assert generate(run, "twice", tmp_path / "twice", "--touch", f"one={tmp_path / 'given.f32'}") == 0
    names = sorted(path.name for path in (tmp_path / "twice").iterdir())
    assert names == ["0000-go-1-one.f32", "0000-go-1-two.f32", "0000-go-1.json"]
    assert np.array_equal(np.fromfile(tmp_path / "twice" / "0000-go-1-one.f32", np.float32), given)
    capsys.readouterr()
    assert generate(run, "twice", tmp_path / "twice", "--touch", str(tmp_path / "given.f32")) == 2
    assert "write --touch one=FILE or --touch two=FILE" in capsys.readouterr().err


def test_one_file_and_one_row_are_all_of_it(row):
    """What the command line, the loader and the trunk know of it comes from the row."""
    added = {name: MODALITIES[name] for name in MODALITIES if name not in inspect.getsource(table)}
    assert list(added) == ["touch"]
    (entry,) = added.values()
    assert {inspect.getmodule(part) for part in (entry.settings, entry.adapter)} == {inspect.getmodule(TouchAdapter)}
