"""Which frozen text encoders there are, and how a run chooses one."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.errors import nearest

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TextKind:
    """One family of published text encoders.

    Attributes:
        network: class of the transformers library.
        types: `model_type` of the config.json files that it reads.
        example: a published model, whose width the kind assumes unless `width` says otherwise.
        width: channels of one hidden layer of the example.
        max_tokens: S, unless the configuration sets one.
        layers: unless the configuration names some; () is the network's last_hidden_state.
        blocks, norm: the transformer blocks and the final normalization inside the network; "" for a network whose
            blocks end with their own.
        options: of the class, such as a part that it builds only if asked.
        unused: beginnings of tensor names that a published file holds besides this network.
        chat: the caption is put into the tokenizer's chat template, as one message of a user.
        arguments: of the network's forward, besides ids and mask.
        sizes: what the example's config.json says of sizes; () where it is not recorded here. The dry run counts FLOPs
            with it.
    """

    network: str
    types: tuple[str, ...]
    example: str
    width: int
    max_tokens: int
    layers: tuple[int, ...]
    blocks: str
    norm: str
    unused: tuple[str, ...]
    chat: bool = False
    arguments: tuple[tuple[str, object], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    options: tuple[tuple[str, object], ...] = ()


_T5 = {"max_tokens": 512, "layers": (), "blocks": "encoder.block", "norm": "encoder.final_layer_norm"}
_T5_UNUSED = ("decoder.", "lm_head.")
KINDS = {
    # Its first published T5 1.1 of this width; the length is that of the larger FLUX.1 model.
    "t5": TextKind("T5EncoderModel", ("t5",), "google/t5-v1_1-xxl", 4096, **_T5, unused=_T5_UNUSED),
    # The encoder and the length of Wan2.1 and Wan2.2.
    "umt5": TextKind("UMT5EncoderModel", ("umt5",), "google/umt5-xxl", 4096, **_T5, unused=_T5_UNUSED),
    "clip": TextKind(
        "CLIPTextModel",
        ("clip", "clip_text_model"),
        "openai/clip-vit-large-patch14",
        768,
        max_tokens=77,
        layers=(),
        blocks="encoder.layers",
        norm="final_layer_norm",
        unused=("vision_model.", "visual_projection.", "text_projection.", "logit_scale", "text_model.embeddings.posi"),
    ),
    # The length of sentence-transformers; the network has 512 positions. Its pooling to one vector is not used.
    "bert": TextKind(
        "BertModel",
        ("bert",),
        "sentence-transformers/all-MiniLM-L6-v2",
        384,
        max_tokens=256,
        layers=(),
        blocks="encoder.layer",
        norm="",
        unused=("pooler.", "cls.", "embeddings.position_ids"),
        options=(("add_pooling_layer", False),),
    ),
    # FLUX.2 klein: template without thinking, three hidden layers side by side, at most 512 tokens.
    "qwen3": TextKind(
        "Qwen3Model",
        ("qwen3",),
        "Qwen/Qwen3-4B",
        2560,
        max_tokens=512,
        layers=(9, 18, 27),
        blocks="layers",
        norm="norm",
        unused=("lm_head.",),
        chat=True,
        arguments=(("use_cache", False),),
        sizes=(
            ("hidden_size", 2560),
            ("num_hidden_layers", 36),
            ("intermediate_size", 9728),
            ("num_attention_heads", 32),
            ("num_key_value_heads", 8),
            ("head_dim", 128),
            ("vocab_size", 151936),
        ),
    ),
}


@dataclass
class TextEncoderConfig:
    """A frozen text encoder. Where all records carry stored features, it is never loaded.

    Attributes:
        kind: t5, umt5, clip, bert or qwen3.
        path: a folder with config.json, model.safetensors and the tokenizer's files, or a name on the hub;
            package:NAME/FOLDER is a folder inside an installed package.
        tokenizer: the tokenizer's folder or name, where it is not at `path`; "" is `path`.
        max_tokens: S of every context; what a caption has beyond is cut off. null: 77 for clip, 256 for bert, 512 for
            the others.
        layers: 1-based blocks whose outputs stand side by side in a feature, before the network's final
            normalization; the last block's output is taken after it. Empty: 9, 18, 27 for qwen3 (FLUX.2 klein), the
            last for the others.
        precision: of weights, arithmetic and features, fp32 or bf16.
        pad: the network reads every caption padded to max_tokens, and what it makes of the padding is part of the
            features, as FLUX.2 was trained. null: no, and yes with trunk.kind flux2.
        width: Dc, channels of a feature, all layers together; the trunk is built from it, so that this needs no
            weights. null: that of t5-v1_1-xxl, umt5-xxl, CLIP ViT-L, all-MiniLM-L6-v2 and Qwen3-4B.
    """

    kind: str = "t5"
    path: str = ""
    tokenizer: str = ""
    max_tokens: int | None = None
    layers: list[int] = field(default_factory=list)
    precision: str = "bf16"
    pad: bool | None = None
    width: int | None = None

    def problems(self) -> list[str]:
        if self.kind not in KINDS:
            return [f"kind: {self.kind!r} is not one of {', '.join(KINDS)}.{nearest(self.kind, KINDS)}"]
        found = []
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(f"max_tokens: {self.max_tokens} must be at least 1")
        if self.width is not None and self.width < 1:
            found.append(f"width: {self.width} must be at least 1")
        if any(layer < 1 for layer in self.layers) or len(set(self.layers)) < len(self.layers):
            found.append(f"layers: {list(self.layers)} must be different blocks, counted from 1")
        if self.precision not in PRECISIONS:
            hint = nearest(self.precision, PRECISIONS)
            found.append(f"precision: {self.precision!r} is not one of {', '.join(PRECISIONS)}.{hint}")
        return found

    def taken_layers(self) -> tuple[int, ...]:
        """The layers of a feature; () for the network's last_hidden_state."""
        return tuple(self.layers) or KINDS[self.kind].layers

    def length(self) -> int:
        """S of every context."""
        return self.max_tokens or KINDS[self.kind].max_tokens

    def channels(self) -> int:
        """Dc of every feature."""
        return self.width or KINDS[self.kind].width * (len(self.taken_layers()) or 1)
