"""Loading settings: what wins, what is refused, and where the message points."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import MISSING

from core.errors import ConfigError, choose
from core.kinds import kinds
from core.training.config import (
    ABSENT,
    differences,
    from_plain,
    load,
    read_plain,
    refuse_changes,
    to_plain,
    to_yaml,
)
from tests.field_reads import unread_fields


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Optimizer:
    lr: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    fused: bool = True

    def problems(self) -> list[str]:
        return [] if self.lr > 0 else [f"lr: {self.lr} must be above 0"]


@dataclass
class Source:
    path: str = "here"
    weight: float = 1.0

    def problems(self) -> list[str]:
        return [] if self.weight >= 0 else [f"weight: {self.weight} must not be negative"]


@dataclass
class Trunk:
    depth: int = 2
    color: Color = Color.RED
    optimizer: Optimizer = field(default_factory=Optimizer)


@dataclass
class Whole:
    method: str = "a"
    seed: int = 0
    note: str | None = None
    limit: float | None = None
    trunk: Trunk = field(default_factory=Trunk)
    video: Source | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    chain: list[Source] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [1, 2])

    def problems(self) -> list[str]:
        return ["nothing fits: seed 13 is unlucky"] if self.seed == 13 else []


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems_of(path: Path, overrides=(), **options) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Whole, path, list(overrides), **options)
    return caught.value.problems


def test_defaults_yaml_and_overrides_in_that_order(tmp_path):
    path = write(
        tmp_path, "seed: 3\ntrunk:\n  depth: 5\n  optimizer: {lr: 2e-3, betas: [0.5, 0.6]}\nvideo: {path: x}\n"
    )
    config = load(Whole, path, ["trunk.depth=7", "sizes=[4, 5]", "note=a red circle", "trunk.color=BLUE"])
    assert isinstance(config, Whole)
    assert isinstance(config.trunk.optimizer, Optimizer)
    assert (config.seed, config.trunk.depth, config.trunk.optimizer.lr) == (3, 7, 2e-3)
    assert config.trunk.optimizer.betas == [0.5, 0.6]
    assert config.video == Source("x", 1.0)
    assert config.sizes == [4, 5]
    assert config.note == "a red circle"
    assert config.trunk.color is Color.BLUE
    assert load(Whole, write(tmp_path, "")) == Whole()


def test_dicts_and_lists_of_sections(tmp_path):
    path = write(tmp_path, "sources:\n  one: {path: p}\n  two: {weight: 2}\nchain:\n  - {path: q}\n  - {weight: 3}\n")
    config = load(Whole, path, ["sources.one.weight=0.5", "sources.three.path=r"])
    assert config.sources == {"one": Source("p", 0.5), "two": Source("here", 2.0), "three": Source("r", 1.0)}
    assert config.chain == [Source("q"), Source("here", 3.0)]
    assert problems_of(write(tmp_path, "sources:\n  one:\n    pth: p\nchain:\n  - path: q\n  - wait: 3\n")) == [
        "run.yaml:3: sources.one.pth: unknown key; allowed: path, weight. Did you mean: 'path'?",
        "run.yaml:6: chain.1.wait: unknown key; allowed: path, weight. Did you mean: 'weight'?",
    ]


def test_text_stays_text_and_numbers_are_numbers(tmp_path):
    config = load(Whole, write(tmp_path, "method: off\nnote: 2024-01-02\nlimit: 1e-4\n"), ["method=007"])
    assert (config.method, config.note, config.limit) == ("007", "2024-01-02", 1e-4)
    assert load(Whole, write(tmp_path, "method: off\n")).method == "off"
    assert load(Whole, write(tmp_path, ""), ["method=1e3"]).method == "1e3"
    assert load(Whole, write(tmp_path, ""), ["method=true"]).method == "true"
    assert load(Whole, write(tmp_path, "limit: 3\n"), ["limit=null"]).limit is None


def test_null_leaves_out_what_a_file_below_has(tmp_path):
    @dataclass
    class Shared:
        shares: dict[str, float] = field(default_factory=dict)
        sources: dict[str, Source] = field(default_factory=dict)

    file = write(tmp_path, "shares: {a: 1, b: 2}\nsources: {x: {weight: 2}}\n")
    for override, shares in (("shares=null", {}), ("shares={a: null}", {"b": 2.0}), ("shares.b=null", {"a": 1.0})):
        assert load(Shared, file, [override]).shares == shares
    assert load(Shared, file, ["sources=null"]).sources == {}


def test_every_problem_is_named_at_once_with_file_and_line(tmp_path):
    text = """seed: soon
trunk:
  depht: 4
  optimizer:
    lr: -1
    betas: nine
video:
  weight: -2
video2: {}
limit: .nan
seed: 4
"""
    found = problems_of(write(tmp_path, text), ["trunk.optimizer.lrr=3", "trunk.depth=1.5", "bare", "sizes=[1"])
    assert found[0] == "run.yaml:11: seed: given twice, first at run.yaml:1"
    assert found[1].startswith("command line 'bare': expected key=value")
    assert found[2].startswith("command line 'sizes=[1': the value is not valid YAML")
    assert found[3:] == [
        "run.yaml:1: seed: expected int, got 'soon'",
        "run.yaml:3: trunk.depht: unknown key; allowed: depth, color, optimizer. Did you mean: 'depth'?",
        "run.yaml:6: trunk.optimizer.betas: expected list[float], got 'nine'",
        "command line 'trunk.optimizer.lrr=3': trunk.optimizer.lrr: unknown key; allowed: lr, betas, fused. "
        "Did you mean: 'lr'?",
        "command line 'trunk.depth=1.5': trunk.depth: expected int, got 1.5",
        "run.yaml:9: video2: unknown key; allowed: method, seed, note, limit, trunk, video, sources, chain, sizes. "
        "Did you mean: 'video'?",
        "run.yaml:10: limit: nan is not a finite number",
        "run.yaml:5: trunk.optimizer.lr: -1.0 must be above 0",
        "run.yaml:8: video.weight: -2.0 must not be negative",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trunk=3", "trunk: expected a section with some of depth, color, optimizer; got 3"),
        ("trunk=null", "trunk: expected a section with some of depth, color, optimizer; got null"),
        ("seed=null", "seed: expected int, got null"),
        ("seed=true", "seed: expected int, got True"),
        ("limit=inf", "limit: inf is not a finite number"),
        ("limit=.inf", "limit: inf is not a finite number"),
        ("sizes=[1, a]", "sizes: expected list[int], got [1, 'a']"),
        ("sizes=4", "sizes: expected list[int], got 4"),
        ("trunk.optimizer.fused=2", "trunk.optimizer.fused: expected bool, got 2"),
        ("trunk.optimizer.betas=[0.5, .nan]", "trunk.optimizer.betas.1: nan is not a finite number"),
        ("trunk.color=BLU", "trunk.color: expected one of RED, BLUE, got 'BLU'. Did you mean: 'BLUE'?"),
        ("method={a: 1}", "method: expected str, got {'a': 1}"),
        ("seed=13", "nothing fits: seed 13 is unlucky"),
        ("trunc.optimizer.lr=3", "Did you mean: 'trunk'?"),
        ("sources.x=3", "sources.x: expected a section with some of path, weight; got 3"),
        ("note=${nowhere}", "note: Interpolation key 'nowhere' not found"),
    ],
)
def test_wrong_values(override, message, tmp_path):
    found = problems_of(write(tmp_path, "seed: 1\n"), [override])
    assert len(found) == 1
    assert found[0].endswith(message)
    assert found[0].startswith((f"command line {override!r}: ", "run.yaml: nothing"))


def test_interpolation_works(tmp_path):
    assert load(Whole, write(tmp_path, "seed: 5\nsizes: ['${seed}', 1]\n"), ["trunk.depth=${seed}"]).trunk.depth == 5


def test_a_section_problem_points_at_the_section(tmp_path):
    @dataclass
    class Picky:
        inner: Source = field(default_factory=Source)

        def problems(self):
            return ["inner.path: unknown place"]

    Picky.__annotations__ = {"inner": Source}
    with pytest.raises(ConfigError, match=r"^run.yaml:2: inner.path: unknown place$"):
        load(Picky, write(tmp_path, "\ninner:\n  weight: 1\n"))


def test_required_settings(tmp_path):
    @dataclass
    class Needs:
        run: str = MISSING

    Needs.__annotations__ = {"run": str}
    with pytest.raises(ConfigError, match=r"^run.yaml: run: required, but not set$"):
        load(Needs, write(tmp_path, ""))
    assert load(Needs, write(tmp_path, ""), ["run=x"]).run == "x"


@pytest.mark.parametrize(
    ("text", "where"),
    [("seed: 1\ntrunk: [1, 2\n", "run.yaml:3:1: not valid YAML"), ("a: b: c\n", "run.yaml:1:5: not valid YAML"),
     ("seed:\n\t- 1\n", "run.yaml:2:1: not valid YAML"), ("- 1\n- 2\n", "run.yaml:1: expected `key: value`"),
     ("a: !!python/object:os.x {}\n", "run.yaml:1")],
)  # fmt: skip
def test_what_is_not_yaml(text, where, tmp_path):
    assert problems_of(write(tmp_path, text))[0].startswith(where)


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, "", "quickstart.yaml")
    assert problems_of(tmp_path / "quikstart.yaml")[0].endswith(
        "no such file; the folder has quickstart.yaml. Did you mean: 'quickstart.yaml'?"
    )
    assert "does not exist" in problems_of(tmp_path / "nowhere" / "x.yaml")[0]
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in problems_of(tmp_path / "binary.yaml")[0]
    assert "cannot be read" in problems_of(tmp_path)[0]


def test_base_is_merged_first_and_cycles_are_refused(tmp_path):
    write(tmp_path, "seed: 1\ntrunk: {depth: 3, optimizer: {lr: 0.5}}\n", "base.yaml")
    (tmp_path / "sub").mkdir()
    top = write(tmp_path / "sub", "base: ../base.yaml\ntrunk:\n  optimizer: {lr: -0.25}\n")
    assert problems_of(top) == ["run.yaml:3: trunk.optimizer.lr: -0.25 must be above 0"]
    config = load(Whole, top, ["trunk.optimizer.lr=0.125"])
    assert (config.seed, config.trunk.depth, config.trunk.optimizer.lr) == (1, 3, 0.125)
    write(tmp_path, "seed: x\n", "base.yaml")
    assert problems_of(top)[0] == "base.yaml:1: seed: expected int, got 'x'"
    write(tmp_path, "base: sub/run.yaml\n", "base.yaml")
    assert problems_of(top) == [
        "base.yaml:1: base: sub/run.yaml leads back to itself: run.yaml -> base.yaml -> sub/run.yaml"
    ]
    assert "own.yaml:1: base: own.yaml leads back" in problems_of(write(tmp_path, "base: own.yaml\n", "own.yaml"))[0]
    assert problems_of(write(tmp_path, "base: bsae.yaml"))[0].startswith("run.yaml:1: base: ")
    assert "expected the name" in problems_of(write(tmp_path, "base: [a]"))[0]


def presets(user: dict) -> dict:
    table = {"a": {}, "b": {"seed": 7, "trunk": {"depth": 9, "optimizer": {"lr": 3}}}}
    return choose("method", user.get("method", "a"), table)


def test_a_preset_lies_between_the_defaults_and_the_user(tmp_path):
    path = write(tmp_path, "trunk: {depth: 4}\n")
    config = load(Whole, path, ["method=b", "seed=8"], presets)
    assert (config.seed, config.trunk.depth, config.trunk.optimizer.lr) == (8, 4, 3.0)
    assert load(Whole, path, [], presets).trunk.optimizer.lr == 1e-4
    assert problems_of(path, ["method=c", "seed=x"], presets=presets) == [
        "command line 'method=c': method: 'c' is not one of a, b.",
        "command line 'seed=x': seed: expected int, got 'x'",
    ]


def test_the_printed_configuration_reads_back_equal(tmp_path):
    config = load(Whole, write(tmp_path, "method: 'off'\nlimit: 1e-8\nvideo: {path: 'a: b'}\ntrunk: {color: BLUE}\n"))
    path = write(tmp_path, to_yaml(config), "printed.yaml")
    assert load(Whole, path) == config
    assert read_plain(path) == to_plain(config)


def test_changes_are_named_and_free_ones_pass():
    old = to_plain(Whole())
    new = to_plain(Whole(seed=1, video=Source(), trunk=Trunk(optimizer=Optimizer(lr=1.0, betas=[0.9, 0.99]))))
    assert differences(old, old) == []
    assert [key for key, _, _ in differences(old, new)] == [
        "seed",
        "trunk.optimizer.lr",
        "trunk.optimizer.betas",
        "video",
    ]
    assert differences({"a": 1}, {"b": 1.0}) == [("a", 1, ABSENT), ("b", ABSENT, 1.0)]
    assert differences({"a": True}, {"a": 1}) == [("a", True, 1)]
    refuse_changes(old, new, {"seed", "trunk.optimizer.", "video"})
    with pytest.raises(ConfigError) as caught:
        refuse_changes(old, new, {"see", "trunk.optimizer.betas", "video.path"})
    assert [line.split(":")[0] for line in caught.value.problems[:-1]] == ["seed", "trunk.optimizer.lr", "video"]
    assert "0.0001 when the run was started, 1.0 now" in caught.value.problems[1]


def test_fields_that_nothing_reads_are_found():
    config = Whole(video=Source(), chain=[Source(), Source()], sources={"x": Source()})

    def use(config: Whole) -> None:
        assert isinstance(config.trunk, Trunk)
        _ = config.seed, config.trunk.depth, config.video.path, [source.weight for source in config.chain]
        config.problems()  # checking a setting is not reading it
        to_plain(config)  # and neither is printing it

    assert unread_fields(config, use) == {
        "method", "note", "limit", "sizes", "trunk.color", "trunk.optimizer.lr", "trunk.optimizer.betas",
        "trunk.optimizer.fused", "video.weight", "chain.0.path", "chain.1.path", "sources.x.path", "sources.x.weight",
    }  # fmt: skip
    assert "seed" in unread_fields(config, lambda config: None)  # nothing is left behind
    assert "seed" in unread_fields(config, lambda config: config.problems())


@dataclass(frozen=True)
class Part:
    kind: str


@dataclass(frozen=True)
class Drawn(Part):
    kind: str = "drawn"
    size: int = 0

    def problems(self) -> list[str]:
        return [] if self.size >= 0 else [f"size: {self.size} must not be negative"]


@dataclass(frozen=True)
class Folder(Part):
    kind: str = "folder"
    path: str = ""
    size: int = 0


@dataclass(frozen=True)
class Joined(Part):
    kind: str = "joined"
    parts: dict[str, Part] = field(default_factory=dict, metadata=kinds(lambda: KINDS))


KINDS = {"drawn": Drawn, "folder": Folder, "joined": Joined}


@dataclass
class Parts:
    data: Part = field(default_factory=Drawn, metadata=kinds(KINDS))
    val: Part | None = field(default=None, metadata=kinds(KINDS))
    lists: list[Part] = field(default_factory=list, metadata=kinds(KINDS))


def test_the_kind_of_a_section_chooses_its_dataclass(tmp_path):
    text = "data: {size: 3}\nval: {kind: joined, parts: {a: {kind: folder, path: p}, b: {size: 2}}}\n"
    config = load(Parts, write(tmp_path, text + "lists: [{kind: folder, path: q}, {}]\n"))
    assert config == Parts(
        Drawn(size=3), Joined(parts={"a": Folder(path="p"), "b": Drawn(size=2)}), [Folder(path="q"), Drawn()]
    )
    assert load(Parts, write(tmp_path, to_yaml(config), "printed.yaml")) == config
    assert from_plain(Parts, to_plain(config)) == config
    assert load(Parts, write(tmp_path, "")) == Parts()


def test_a_setting_of_another_kind_is_unknown_and_its_kinds_are_named(tmp_path):
    text = (
        "data:\n  path: p\nval:\n  kind: joined\n  parts:\n    a:\n      kind: folder\n      pth: p\n      parts: {}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(Parts, write(tmp_path, text), ["lists=[{kind: drwn}]"])
    assert caught.value.problems == [
        "run.yaml:2: data.path: unknown key of kind 'drawn'; allowed: kind, size. It belongs to kind folder.",
        "run.yaml:8: val.parts.a.pth: unknown key of kind 'folder'; allowed: kind, path, size. Did you mean: 'path'?",
        "run.yaml:9: val.parts.a.parts: unknown key of kind 'folder'; allowed: kind, path, size. "
        "It belongs to kind joined.",
        "command line 'lists=[{kind: drwn}]': lists.0.kind: 'drwn' is not one of drawn, folder, joined. "
        "Did you mean: 'drawn'?",
    ]
    with pytest.raises(ConfigError, match=r"^run.yaml:2: data.size: -1 must not be negative$"):
        load(Parts, write(tmp_path, "data:\n  size: -1\n"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], Drawn(size=8)),
        (["data.kind=folder", "data.path=p"], Folder(path="p", size=0)),
        (["data.path=p", "data.kind=folder"], Folder(path="p", size=0)),  # in any order
        (["data.kind=drawn", "data.size=9"], Drawn(size=9)),
        (["data.size=9"], Drawn(size=9)),
        (["data={kind: joined, parts: {a: {kind: folder, path: p}}}"], Joined(parts={"a": Folder(path="p")})),
    ],
)
def test_a_section_begins_anew_when_another_kind_is_named(overrides, expected, tmp_path):
    (tmp_path / "c.yaml").write_text("data: {size: 8}\n")
    assert load(Parts, tmp_path / "c.yaml", overrides).data == expected


def test_a_part_begins_anew_too_and_the_others_stay(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "val: {kind: joined, parts: {a: {size: 8}, b: {kind: folder, path: p, size: 7}}}\n"
    )
    parts = load(Parts, tmp_path / "c.yaml", ["val.parts.b.kind=drawn"]).val.parts
    assert parts == {"a": Drawn(size=8), "b": Drawn(size=0)}


def test_a_file_begins_a_section_of_its_base_anew(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {kind: folder, path: p, size: 8}\n")
    (tmp_path / "c.yaml").write_text("base: base.yaml\ndata: {kind: drawn}\n")
    assert load(Parts, tmp_path / "c.yaml").data == Drawn(size=0)
    (tmp_path / "c.yaml").write_text("base: base.yaml\ndata: {kind: folder, path: q}\n")
    assert load(Parts, tmp_path / "c.yaml").data == Folder(path="q", size=8)
