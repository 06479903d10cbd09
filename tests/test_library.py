"""The library: README and examples run as they stand; batches, noise and methods from Python."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import configs
import selfflow as sf
from configs.load import load_config
from core.errors import ConfigError, ShapeError

ROOT = Path(__file__).parents[1]
QUICKSTART = Path(configs.__file__).parent / "quickstart.yaml"


def test_the_readme_shows_training_and_sampling_in_ten_lines_that_run():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert sum(bool(line) for line in code.splitlines()) <= 10
    torch.manual_seed(0)
    space = {"latents": torch.randn(4, 64, 16), "labels": torch.arange(4)}
    exec(code, space)
    assert space["tokens"].shape == (4, 64, 16)
    assert space["tokens"].isfinite().all()
    assert space["loss"].item() > 0


def example(name: str, *arguments) -> None:
    runpy.run_path(str(ROOT / "docs" / "examples" / f"{name}.py"))["main"](*arguments)


@pytest.mark.slow
def test_a_training_loop_of_ones_own_learns_its_classes(capsys):
    example("training_loop", 150)
    printed = capsys.readouterr().out
    assert "align/teacher" in printed
    means = [float(value) for value in re.findall(r"class \d: mean (-?[\d.]+)", printed)]
    assert max(means[:2]) < min(means[2:])


def test_an_alignment_term_of_ones_own_falls(capsys):
    example("custom_alignment", 1)
    before = float(capsys.readouterr().out.split()[-1])
    example("custom_alignment", 20)
    assert float(capsys.readouterr().out.split()[-1]) < before / 2


def test_images_from_python(tiny_run, tmp_path, capsys):
    example("generate", str(tiny_run), str(tmp_path / "out"), "a red circle")
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "0.png")
    model = sf.from_pretrained(str(tiny_run))
    one, two = model.generate("image", ["a red circle", "a blue square"], seed=1, steps=2)
    (again,) = model.generate("image", ["a red circle"], seed=1, steps=2)
    assert torch.equal(one["image"], again["image"])
    assert not torch.equal(one["image"], two["image"])
    with pytest.raises(ConfigError, match="Did you mean: 'image'"):
        model.generate("imgae", ["a red circle"])
    with pytest.raises(ConfigError, match="steps: 0 must be at least 1"):
        model.generate("image", ["a red circle"], steps=0)


@pytest.mark.parametrize("name", sf.METHODS)
def test_a_method_is_that_of_a_run(name):
    found, config = sf.method(name), load_config(QUICKSTART, [f"method={name}", *repa(name)])
    assert found.noising == config.noising
    assert found.alignment == config.alignment


def repa(name: str) -> list[str]:
    """What the method needs beside its name."""
    encoder = "streams.image.encoders={dinov2: {kind: dinov2, path: nowhere}}"
    return ["streams.video=null", "streams.audio=null", encoder] if name == "repa" else []


def test_settings_of_a_method_win_over_its_row():
    found = sf.method("self_flow", noising={"mask": "exact"}, alignment={"ema_teacher": {"weight": 0.5}})
    assert (found.noising.kind, found.noising.mask, found.alignment.ema_teacher.weight) == ("dual", "exact", 0.5)
    with pytest.raises(ConfigError, match="Did you mean: 'self_flow'"):
        sf.method("selfflow")
    with pytest.raises(ConfigError, match=r"noising\.mask: 'half' is not one of bernoulli, exact"):
        sf.method("self_flow", noising={"mask": "half"})
    with pytest.raises(ConfigError, match="'trunk' is not one of noising, alignment"):
        sf.method("self_flow", trunk={})
    with pytest.raises(ConfigError, match=r"alignment\.ema_teacher"):
        sf.method("self_flow", alignment={"ema_teacher": {"student_layer": 9}}).objective(depth=4)


def test_projectors_are_those_of_the_terms():
    assert sf.method("flow_matching").projectors() == {}
    assert sf.method("self_flow").projectors()["teacher"].out is None
    assert sf.method("repa").projectors({"dinov2": 768})["dinov2"].out == 768


def make(keys, **more) -> sf.TokenBatch:
    return sf.token_batch(torch.zeros(len(keys), 6, 4), (1, 2, 3), keys=keys, **more)


def test_positions_run_over_the_last_axis_first():
    (segment,) = make(["a"]).segments
    assert segment.ids.tolist() == [[[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]]
    with pytest.raises(ShapeError, match=r"grid of \(2, 2, 2\) has 8 tokens, x0 has 6"):
        sf.token_batch(torch.zeros(1, 6, 4), (2, 2, 2))


def test_noise_of_a_sample_is_a_function_of_seed_and_key():
    noising = sf.method("self_flow").noising
    whole, alone = (sf.draw(make(keys), noising, seed=3) for keys in (["a", "b", "c"], ["b"]))
    assert torch.equal(whole.noise[0][1], alone.noise[0][0])
    assert torch.equal(whole.student.per_token(6)[1], alone.student.per_token(6)[0])
    other = sf.draw(make(["b"]), noising, seed=4)
    assert not torch.equal(other.noise[0], alone.noise[0])
    assert not torch.equal(other.student.values, alone.student.values)


def test_noise_is_normal_and_levels_are_those_of_the_method():
    keys = [str(number) for number in range(2000)]
    drawn = sf.draw(make(keys), sf.method("self_flow").noising, seed=0, mask_ratio=0.25)
    assert abs(drawn.noise[0].mean()) < 0.02
    assert abs(drawn.noise[0].std() - 1) < 0.02
    assert drawn.student.values.shape == (2000, 2)
    assert abs((drawn.student.index == 1).float().mean() - 0.25) < 0.02
    assert torch.equal(drawn.teacher.values, drawn.student.values.min(dim=1, keepdim=True).values)


def test_conditioning_tokens_keep_their_level_and_carry_no_loss():
    mask = torch.tensor([[True, True, False, False, False, False]])
    batch = make(["a"]).with_conditioning(mask)
    drawn = sf.draw(batch, sf.method("self_flow").noising, seed=0, conditioning_noise=0.1)
    assert (drawn.student.per_token(6)[mask] <= 0.1).all()
    assert torch.equal(drawn.student.per_token(6)[mask], drawn.teacher.per_token(6)[mask])

    class Zero(torch.nn.Module):
        def forward(self, noisy, levels, batch, feature_layers):
            return sf.TrunkOutput(tuple(torch.zeros_like(part) for part in noisy))

    (term,) = sf.Objective()(Zero(), None, batch, drawn).values()
    assert term.count == 4
    assert float(term.mean()) == pytest.approx(float(drawn.noise[0][0, 2:].square().mean(-1).mean()), rel=1e-6)


def test_all_that_the_library_names_is_there():
    assert len(sf.__all__) == len(set(sf.__all__))
    assert all(hasattr(sf, name) for name in sf.__all__)
