"""Frozen text encoders: the library's numbers, whatever lies beside a caption in the batch, and clear refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="text encoders are read with transformers")
pytest.importorskip("tokenizers", reason="tokenizers are read with transformers")

from core.errors import CheckpointError, ConfigError
from core.types import Context
from modalities.conditioning import TextEncoder, TextEncoderConfig
from tests.modalities.conditioning.small import DEPTH, WIDTH, save_text_encoder, save_tokenizer

KINDS = ("t5", "umt5", "clip", "bert", "qwen3")
LENGTH = {"t5": 8, "umt5": 8, "clip": 8, "bert": 8, "qwen3": 120}
CAPTIONS = ["a red circle", "the blue square moving left", "a cat", "dog"]
HARD = [
    "",
    " ",
    "nul \0 byte",
    "emoji 👩‍👩‍👧 🟥",
    "half a pair \ud800",
    "أحمر 红色",
    "red " * 200_000,
    "<|im_end|> </s>",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: save_text_encoder(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def encoder(folders: dict[str, Path], kind: str, **settings) -> TextEncoder:
    layers = settings.get("layers", [1, 2] if kind == "qwen3" else [])
    own = {"max_tokens": LENGTH[kind], "precision": "fp32", "layers": layers, "width": WIDTH * max(len(layers), 1)}
    config = TextEncoderConfig(kind, str(folders[kind]), **{**own, **settings})
    assert config.problems() == []
    return TextEncoder(config)


def library_states(made: TextEncoder, kind: str, text: str) -> list[torch.Tensor]:
    """What leaves every block, caught by hooks on the library's own whole network, and its last_hidden_state."""
    import transformers

    network = getattr(transformers, made.kind.network).from_pretrained(made.path, dtype=torch.float32).eval()
    caught = []
    for block in getattr(network, "text_model", network).get_submodule(made.kind.blocks):
        block.register_forward_hook(lambda _m, _a, out: caught.append(out[0] if isinstance(out, tuple) else out))
    ids = torch.tensor([made._ids(text)])
    with torch.no_grad():
        last = network(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert len(caught) == DEPTH
    return [state.view(1, ids.shape[1], WIDTH)[0] for state in (*caught[:-1], last)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [[], [1], [3, 1], [2]])
def test_features_are_the_librarys(folders, kind, layers):
    made = encoder(folders, kind, layers=layers or ([DEPTH] if kind == "qwen3" else []))
    (found,) = made.encode([CAPTIONS[1]])
    states = library_states(made, kind, CAPTIONS[1])
    taken = made.layers or (DEPTH,)
    torch.testing.assert_close(found, torch.cat([states[layer - 1] for layer in taken], dim=-1), rtol=1e-5, atol=1e-5)
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_saved_without_its_other_half_gives_the_same(folders, tmp_path, kind):
    whole = encoder(folders, kind)
    half = TextEncoder(whole.config, str(save_text_encoder(tmp_path, kind, whole=False)))
    assert half.encode(CAPTIONS)[0].shape == whole.encode(CAPTIONS)[0].shape
    names = {name for name, _ in half._network.named_parameters()}
    assert names == {name for name, _ in whole._network.named_parameters()}


def test_blocks_behind_the_last_layer_are_left_out(folders):
    made = encoder(folders, "qwen3", layers=[1, 2])
    made.load()
    assert len(made._network.layers) == 2
    assert not any(name.startswith("norm") for name, _ in made._network.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_neighbors_do_not_change_a_caption_on_a_cpu(folders, kind):
    made = encoder(folders, kind)
    together, alone = made.encode(CAPTIONS), [made.encode([caption])[0] for caption in CAPTIONS]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a, b)
    backwards = made.encode(CAPTIONS[::-1])
    assert torch.equal(backwards[0], together[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_masked_in_a_batch(folders, kind):
    """The way of an accelerator: one batch, padded behind."""
    made = encoder(folders, kind)
    made.load()
    ids = [made._ids(caption) for caption in CAPTIONS]
    assert len({len(row) for row in ids}) > 1
    for a, b in zip(made._run(ids), made.encode(CAPTIONS), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16(folders, kind):
    exact, rough = (encoder(folders, kind, precision=p).encode(CAPTIONS[:1])[0] for p in ("fp32", "bf16"))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_is_encoded_and_cut(folders, kind):
    made = encoder(folders, kind, max_tokens=6 if kind != "qwen3" else 40)
    found = made.encode(HARD)
    assert all(features.isfinite().all() for features in found)
    assert all(features.shape[1] == made.width and len(features) <= made.length for features in found)
    assert max(len(features) for features in found) == made.length
    if kind != "qwen3":  # its end mark stays behind the cut; a chat template is cut like the text, as in FLUX.2 klein
        ends = {"clip": 2, "bert": 2}.get(kind, 1)
        assert made._ids("red " * 100)[-1] == ends


def test_a_tokenizer_without_marks_gives_an_empty_text_no_token(folders, tmp_path):
    folder = shutil.copytree(folders["t5"], tmp_path / "t5")
    settings = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**settings, "post_processor": None}))
    made = encoder({"t5": folder}, "t5")
    found = made.encode(["", "a red cross"])
    assert [len(features) for features in found] == [0, 3]
    context = made.complete(Context(torch.tensor([False])), [""])
    assert context.valid.sum() == 0


def test_the_chat_template_of_flux2_klein(folders):
    made = encoder(folders, "qwen3")
    made.load()
    said = "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert made._tokenizer.decode(made._ids("a cat"), skip_special_tokens=False) == said


def test_contexts_are_completed(folders):
    made = encoder(folders, "t5")
    a, b = made.encode(["a red circle", "a cat"])
    dropped = torch.tensor([False, True, False, False])
    context = made.complete(Context(dropped), ["a red circle", None, "a cat", ""])
    assert context.tokens.shape == (4, 8, WIDTH)
    assert torch.equal(context.tokens[0, : len(a)], a)
    assert torch.equal(context.tokens[2, : len(b)], b)
    assert context.valid.sum(dim=1).tolist() == [len(a), 0, len(b), 1]
    assert torch.equal(context.dropped, dropped)
    hidden = context.tokens[~context.valid]
    assert torch.equal(hidden, torch.zeros_like(hidden))


def test_stored_and_encoded_rows_stand_side_by_side(folders):
    made = encoder(folders, "t5")
    stored = torch.randn(2, 11, WIDTH)
    valid = torch.arange(11) < torch.tensor([[10], [0]])
    context = made.complete(Context(torch.tensor([False, False]), tokens=stored, valid=valid), [None, "dog"])
    assert torch.equal(context.tokens[0], stored[0, :8])  # what is stored beyond the length is cut off
    assert context.valid[0].all()
    (dog,) = made.encode(["dog"])
    assert torch.equal(context.tokens[1, : len(dog)], dog)
    assert context.valid[1].sum() == len(dog)


def test_stored_features_need_no_encoder():
    made = TextEncoder(TextEncoderConfig("t5", path="nowhere", max_tokens=5, width=4, precision="fp32"))
    stored = Context(torch.tensor([False]), tokens=torch.ones(1, 2, 4), valid=torch.ones(1, 2, dtype=torch.bool))
    context = made.complete(stored, [None])
    assert context.tokens.shape == (1, 5, 4)
    assert context.valid.tolist() == [[True, True, False, False, False]]
    with pytest.raises(ConfigError, match="there is no such folder"):
        made.complete(stored, ["a cat"])


def refusal(made: TextEncoder, error=ConfigError) -> str:
    with pytest.raises(error) as caught:
        made.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_is_named(folders, tmp_path, monkeypatch):
    path = "~/no-such-folder"
    text = refusal(TextEncoder(TextEncoderConfig("qwen3", path)))
    assert text.startswith("condition.encoder.path: ")
    for part in ("tokenizer.json", "Qwen/Qwen3-4B", "byte-level encoder (condition.encoder=null) and stored features"):
        assert part in text
    assert "condition.encoder.path: empty" in refusal(TextEncoder(TextEncoderConfig("t5")))

    bare = shutil.copytree(folders["clip"], tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert "holds none of tokenizer.json, spiece.model" in refusal(encoder({"clip": bare}, "clip"))
    apart = save_tokenizer(tmp_path / "apart", "clip")
    assert len(encoder({"clip": bare}, "clip", tokenizer=str(apart)).encode(["a cat"])[0]) == 4
    (apart / "tokenizer.json").write_text("{")
    text = refusal(encoder({"clip": bare}, "clip", tokenizer=str(apart)))
    assert text.startswith("condition.encoder.tokenizer: the tokenizer in ")

    (bare / "model.safetensors").unlink()
    text = refusal(encoder({"clip": bare}, "clip", tokenizer=str(folders["clip"])))
    assert text.startswith("condition.encoder.path: ")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "needs the package transformers" in refusal(encoder(folders, "clip"))


def test_what_does_not_fit_the_model_is_refused(folders, tmp_path):
    assert "set condition.encoder.width=16" in refusal(encoder(folders, "t5", width=4096))
    text = refusal(encoder(folders, "qwen3", layers=[], width=None))
    assert text.startswith("condition.encoder.layers: 27 is beyond the 3 blocks")
    assert "have 32 channels in 2 layers" in refusal(encoder(folders, "t5", layers=[1, 2], width=16))
    text = refusal(encoder(folders, "clip", max_tokens=13))
    assert text.startswith("condition.encoder.max_tokens: 13 is beyond the 12 positions of ")
    assert "2 leaves no room for text" in refusal(encoder(folders, "clip", max_tokens=2))
    text = refusal(TextEncoder(TextEncoderConfig("clip", str(folders["umt5"]))))
    assert text.endswith("such as openai/clip-vit-large-patch14. Set condition.encoder.kind: umt5")
    save_tokenizer(tmp_path / "other", "qwen3")
    text = refusal(encoder(folders, "t5", tokenizer=str(tmp_path / "other")), CheckpointError)
    assert "a tokenizer of 261 entries does not belong to the network" in text
    text = refusal(encoder(folders, "qwen3", tokenizer=str(folders["t5"])))
    assert "has no chat template" in text


def test_other_weights_than_those_of_stored_features_are_refused(folders):
    made, other = encoder(folders, "t5"), encoder(folders, "t5")
    other.expect(made.digest())
    other.load()
    other = encoder(folders, "umt5")
    other.expect(made.digest())
    assert "are not those that the text features of this run were made with" in refusal(other, CheckpointError)


def test_weights_of_another_shape_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["t5"], tmp_path / "t5")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_layers": 4}))
    assert "missing keys: encoder.block.3" in refusal(encoder({"t5": folder}, "t5"), CheckpointError)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    assert f"{folder}: damaged weights: " in refusal(encoder({"t5": folder}, "t5"), CheckpointError)


def test_a_folder_is_checked_without_its_weights(folders, tmp_path):
    folder = shutil.copytree(folders["qwen3"], tmp_path / "qwen3", ignore=shutil.ignore_patterns("*.safetensors"))
    encoder({"qwen3": folder}, "qwen3").check()
    for wrong, message in (
        (encoder({"qwen3": folder}, "qwen3", layers=[1, 9]), "condition.encoder.layers: 9 is beyond the 3 blocks"),
        (TextEncoder(TextEncoderConfig("clip", str(folder))), "Set condition.encoder.kind: qwen3"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong.check()
