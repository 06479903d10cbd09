"""Small text encoders of the real classes with random weights and small tokenizers, saved as published ones are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "an", "the", "red", "green", "blue", "circle", "square", "cross", "moving", "left", "right", "cat", "dog"]
DEPTH, WIDTH = 3, 16
# Roles and turns, and the empty thought of a model that is not to think, in the order of Qwen3's own template.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def _unigram() -> Any:
    """As T5's: pieces of words, and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *((f"▁{word}", -3.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -8.0) for letter in "▁abcdefghi")], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def _word_level() -> Any:
    """As CLIP's: whole words between a start and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<start>", "<end>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return tokenizer


def _byte_level() -> Any:
    """As Qwen's: bytes, with the marks of a conversation."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"])
    return tokenizer


def save_tokenizer(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = {"clip": _word_level, "bert": _word_level, "qwen3": _byte_level}.get(kind, _unigram)()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if kind == "qwen3":
        settings |= {"chat_template": TEMPLATE, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def make_network(kind: str, whole: bool = True) -> Any:
    """The network as it is published (`whole`: with the decoder, the image's tower or the head), random weights."""
    import transformers

    if kind == "clip":
        text = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": DEPTH}
        text |= {"vocab_size": 32, "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 2}
        if not whole:
            return transformers.CLIPTextModel(transformers.CLIPTextConfig(**text, pad_token_id=0))
        vision = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
        vision |= {"image_size": 8, "patch_size": 4}
        config = transformers.CLIPConfig(text_config={**text, "pad_token_id": 0}, vision_config=vision)
        return transformers.CLIPModel(config)
    if kind == "bert":
        shape = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": DEPTH}
        config = transformers.BertConfig(**shape, vocab_size=32, max_position_embeddings=12)
        return (transformers.BertForMaskedLM if whole else transformers.BertModel)(config)
    if kind == "qwen3":
        shape = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        shape |= {"intermediate_size": 32, "num_hidden_layers": DEPTH, "vocab_size": 264}
        config = transformers.Qwen3Config(**shape, max_position_embeddings=128, bos_token_id=None, eos_token_id=None)
        return (transformers.Qwen3ForCausalLM if whole else transformers.Qwen3Model)(config)
    shape = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": DEPTH, "num_heads": 2, "vocab_size": 36}
    name = {"t5": "T5", "umt5": "UMT5"}[kind]
    network = getattr(transformers, f"{name}ForConditionalGeneration" if whole else f"{name}EncoderModel")
    return network(getattr(transformers, f"{name}Config")(**shape, feed_forward_proj="gated-gelu"))


def save_text_encoder(folder: Path, kind: str = "t5", whole: bool = True) -> Path:
    """Network and tokenizer in one folder, with weights large enough that every block matters."""
    network = make_network(kind, whole)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in network.named_parameters():
            norm = value.ndim == 1 and "norm" in name and name.endswith("weight")
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + norm)
    network.eval().save_pretrained(folder)
    return save_tokenizer(folder, kind)
