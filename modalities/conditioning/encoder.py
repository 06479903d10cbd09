"""A frozen text encoder: texts to features without padding, and contexts completed with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autoencoders.pretrained import digest
from core.errors import CheckpointError, ConfigError
from core.optional import packaged
from core.types import Context
from modalities.conditioning.kinds import KINDS, TextEncoderConfig
from modalities.targets.weights import Folder, Role, find_file, load_network, open_folder

KEY = "condition.encoder"
ROLE = Role(
    KEY,
    "config.json, model.safetensors and the tokenizer's files (tokenizer.json)",
    "The byte-level encoder (condition.encoder=null) and stored features work",
)
# One of these makes a folder that of a tokenizer. Without any, transformers 5 returns a tokenizer without words.
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")


class TextEncoder:
    """The encoder of a configuration, with its tokenizer. Both are read at the first use.

    Args:
        config: checked already.
        path: what to read in place of `config.path`, such as the same relative to the configuration.
        tokenizer: in place of `config.tokenizer`.

    Attributes:
        length: S, context tokens of every sample.
        width: Dc.
        dtype: of the features.
    """

    def __init__(self, config: TextEncoderConfig, path: str | None = None, tokenizer: str | None = None):
        self.config, self.kind = config, KINDS[config.kind]
        self.path = os.path.expanduser(config.path if path is None else path)
        self.tokenizer_path = os.path.expanduser(config.tokenizer if tokenizer is None else tokenizer) or self.path
        self.length, self.width, self.layers = config.length(), config.channels(), config.taken_layers()
        self.dtype = feature_dtype(config)
        self.device = torch.device("cpu")
        self._network: nn.Module | None = None
        self._tokenizer: Any = None
        self._expected = ""

    def to(self, device: torch.device | str) -> TextEncoder:
        self.device = torch.device(device)
        if self._network is not None:
            self._network.to(self.device)
        return self

    def expect(self, digest: str) -> None:
        """Refuse other weights than these when they are read; "" takes any."""
        self._expected = digest

    def load(self) -> None:
        """Read tokenizer and weights now instead of at first use.

        Raises:
            ConfigError: they are missing, or the settings do not fit them.
            CheckpointError: they are of another network, or not those that are expected.
        """
        if self._network is not None:
            return
        if not self.path:
            raise ConfigError(
                f"{KEY}.path: empty, and there are captions without stored features; it must be a folder with "
                f"{ROLE.files}, or a name on the hub such as {self.kind.example}. {ROLE.without} without it"
            )
        self.path = packaged(self.path, f"{KEY}.path", ROLE.without)
        folder = self._open()
        tokenizer = self._words()
        settings = _settings(self.path)
        self._check(settings, tokenizer)
        with torch.random.fork_rng(devices=[]):  # a library that initializes what it then overwrites
            network = load_network(
                self.config.kind,
                folder,
                self.kind.network,
                self.kind.example,
                self.kind.unused,
                dtype=self.dtype,
                options=dict(self.kind.options),
            )
        self._cut(network)
        if self._expected and (seen := digest(network.state_dict())) != self._expected:
            raise CheckpointError(
                f"{KEY}.path: the weights at {self.path} (digest {seen}) are not those that the text features of this "
                f"run were made with (digest {self._expected})"
            )
        self._network = network.eval().requires_grad_(False).to(self.device)

    def check(self) -> None:
        """Raise ConfigError where the config.json at `path` is of another kind of model, or of another shape."""
        self._open()
        if wrong := self._misfits(_settings(self.path)):
            raise ConfigError(wrong)

    def _open(self) -> Folder:
        folder = open_folder(self.config.kind, self.path, self.kind.example, ROLE)
        seen = folder.settings.get("model_type")
        if seen not in self.kind.types:
            fitting = [name for name, other in KINDS.items() if seen in other.types]
            hint = f". Set {KEY}.kind: {fitting[0]}" if fitting else ""
            raise ConfigError(
                f"{KEY}.path: {self.path!r} holds a model of type {seen!r}; kind {self.config.kind!r} reads "
                f"{', '.join(self.kind.types)}, such as {self.kind.example}{hint}"
            )
        return folder

    def _loaded(self) -> nn.Module:
        self.load()
        assert self._network is not None
        return self._network

    def _misfits(self, settings: Any) -> list[str]:
        """What the model of config.json does not have."""
        wrong, depth = [], settings.num_hidden_layers
        width = settings.hidden_size * (len(self.layers) or 1)
        if self.layers and max(self.layers) > depth:
            wrong.append(f"{KEY}.layers: {max(self.layers)} is beyond the {depth} blocks of {self.path}")
        elif width != self.width:
            layers = f" in {len(self.layers)} layers" if len(self.layers) > 1 else ""
            wrong.append(
                f"{KEY}.width: {self.width}, but the features of {self.path} have {width} channels{layers}; "
                f"set {KEY}.width={width}"
            )
        places = getattr(settings, "max_position_embeddings", None)
        if places is not None and self.length > places:
            wrong.append(f"{KEY}.max_tokens: {self.length} is beyond the {places} positions of {self.path}")
        return wrong

    def _check(self, settings: Any, tokenizer: Any) -> None:
        """Raise for settings that the model of config.json does not have, before its weights are read."""
        wrong = self._misfits(settings)
        own = tokenizer.num_special_tokens_to_add()
        if self.length <= own:
            wrong.append(f"{KEY}.max_tokens: {self.length} leaves no room for text; {own} tokens are the tokenizer's")
        if self.config.pad and tokenizer.pad_token_id is None:
            wrong.append(f"{KEY}.tokenizer: {self.tokenizer_path!r} has no token for padding, which pad needs")
        if self.kind.chat and not tokenizer.chat_template:
            wrong.append(
                f"{KEY}.tokenizer: {self.tokenizer_path!r} has no chat template, which kind {self.config.kind!r} needs"
            )
        if wrong:
            raise ConfigError(wrong)
        if len(tokenizer) > settings.vocab_size:
            raise CheckpointError(
                f"{self.tokenizer_path}: a tokenizer of {len(tokenizer)} entries does not belong to the network of "
                f"{self.path}, which knows {settings.vocab_size}"
            )

    def _cut(self, network: Any) -> None:
        """Leave out the blocks after the last one that is taken, and then the final normalization too."""
        owner = getattr(network, "text_model", network)  # CLIP's, before transformers 5
        blocks = owner.get_submodule(self.kind.blocks)
        last = max(self.layers, default=len(blocks))
        if last < len(blocks):
            del blocks[last:]
            network.config.num_hidden_layers = last
            if self.kind.norm:
                owner.set_submodule(self.kind.norm, nn.Identity())

    def digest(self) -> str:
        """A checksum of the weights that are used, in their precision."""
        return digest(self._loaded().state_dict())

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Features (S_i, Dc) of every text, S_i <= S, without padding, on the encoder's device.

        On a CPU they depend on the text alone, to the bit; elsewhere the longest text of the batch may move a rounding.
        Any text is allowed: what is not valid Unicode is replaced, and an empty text may give no token at all.
        """
        self.load()
        found: dict[str, Tensor] = {}
        distinct = list(dict.fromkeys(texts))
        ids = [self._ids(text) for text in distinct]
        chunk = 1 if self.device.type == "cpu" else max(len(ids), 1)
        for first in range(0, len(ids), chunk):
            found |= zip(distinct[first : first + chunk], self._run(ids[first : first + chunk]), strict=True)
        return [found[text] for text in texts]

    def complete(self, context: Context, texts: Sequence[str | None]) -> Context:
        """The context on the encoder's device, padded to S tokens.

        Args:
            context: stored features (B, any S, Dc), or no tokens.
            texts: by sample, what is encoded into its row; None where the context has its features, or it is dropped.
        """
        size = (context.dropped.shape[0], self.length)
        tokens = torch.zeros(*size, self.width, dtype=self.dtype, device=self.device)
        valid = torch.zeros(size, dtype=torch.bool, device=self.device)
        if context.tokens is not None and context.valid is not None:
            stored = min(context.tokens.shape[1], self.length)
            tokens[:, :stored] = context.tokens[:, :stored].to(tokens)
            valid[:, :stored] = context.valid[:, :stored].to(self.device)
        places = [place for place, text in enumerate(texts) if text is not None]
        if places:
            wanted = [text for text in texts if text is not None]
            for place, features in zip(places, self.encode(wanted), strict=True):
                tokens[place, : len(features)] = features
                valid[place, : len(features)] = True
        return replace(context, dropped=context.dropped.to(self.device), tokens=tokens, valid=valid)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text with those that the tokenizer adds, as many as there are without `max_tokens`.

        Reads the tokenizer alone. Raises ConfigError where there is none.
        """
        return [len(self._ids(text, truncation=False, verbose=False)) for text in texts]

    def _words(self) -> Any:
        """The tokenizer, read once."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(packaged(self.tokenizer_path, f"{KEY}.tokenizer", ROLE.without))
        return self._tokenizer

    def _ids(self, text: str, **options) -> list[int]:
        """Token numbers, at most S; the end of a longer text is cut off, unless `options` say otherwise."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is not text
        tokenizer = self._words()
        if self.kind.chat:
            message = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        return tokenizer(text, **(options or {"truncation": True, "max_length": self.length}))["input_ids"]

    @torch.no_grad()
    def _run(self, texts: list[list[int]]) -> list[Tensor]:
        """Features of token numbers, run as one batch with padding behind."""
        longest = self.length if self.config.pad else max(len(ids) for ids in texts)
        if longest == 0:
            return [torch.zeros(0, self.width, dtype=self.dtype, device=self.device) for _ in texts]
        filler = self._words().pad_token_id if self.config.pad else 0  # without `pad`, no row of it is kept
        ids = torch.full((len(texts), longest), filler, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, numbers in enumerate(texts):
            ids[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
            mask[row, : len(numbers)] = 1
        with torch.autocast(self.device.type, enabled=False):
            result = self._loaded()(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                output_hidden_states=bool(self.layers),
                **dict(self.kind.arguments),
            )
        if self.layers:  # the last one of the list is the network's output; with all blocks, after the normalization
            states = (*result.hidden_states[:-1], result.last_hidden_state)
            features = torch.cat([states[layer] for layer in self.layers], dim=-1)
        else:
            features = result.last_hidden_state
        kept = [longest if self.config.pad else len(numbers) for numbers in texts]
        return [row[:length].to(self.dtype) for row, length in zip(features, kept, strict=True)]


def feature_dtype(config: TextEncoderConfig) -> torch.dtype:
    return torch.bfloat16 if config.precision == "bf16" else torch.float32


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a folder or a name on the hub. Raises ConfigError where there is none that can be read."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    for name in TOKENIZER_FILES:
        try:
            find_file(path, name)
            break
        except OSError:
            continue
    else:
        raise ConfigError(
            f"{KEY}.tokenizer: {path!r} holds none of {', '.join(TOKENIZER_FILES)}; put the tokenizer's files of the "
            f"published model there, or name their folder in {KEY}.tokenizer"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"{KEY}.tokenizer: the tokenizer in {path!r} cannot be read: {reason}. A tokenizer.json can be read "
            "without further packages; others need sentencepiece"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _settings(path: str) -> Any:
    """The text network's part of config.json, with the defaults that the file leaves out."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path).get_text_config()
