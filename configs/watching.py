"""What looks at a run while it trains, from its configuration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from configs.networks import load_autoencoders
from configs.runs import LoadedRun, evaluation_subject, pair_plan
from configs.schema import Config
from core.errors import ConfigError, DataError
from core.training.hooks import Hook
from modalities.base import Source
from modalities.evaluation.subject import plan
from modalities.generation import Generator
from modalities.watching.preview import Preview, Previewed
from modalities.watching.prompts import data_prompts
from modalities.watching.validation import MEASURES, Validated, Validation


def build_hooks(config: Config, generator: Generator, sources: Mapping[str, Source], root: Path) -> list[Hook]:
    """The previews and validations that a run asks for. Raises ConfigError, before anything is trained, for what they
    need and do not have.

    Args:
        generator: of the run; its trunk is the student, of which only the shape is looked at.
        sources: of the training data, by modality.
        root: what relative paths start from.
    """
    hooks: list[Hook] = []
    if config.training.preview.every:
        hooks.append(build_preview(config, generator, sources))
    if config.training.validate.every:
        hooks.append(build_validation(config, generator, root))
    return hooks


def build_preview(config: Config, generator: Generator, sources: Mapping[str, Source]) -> Preview:
    settings, made = config.training.preview, {}
    for name, stream in config.modalities.streams().items():
        prompts = list(settings.prompts.get(name, []))
        if prompts and config.condition.kind == "label":
            generator.conditions.context(prompts, torch.zeros(len(prompts), dtype=torch.bool))  # refuses unknown ones
        if not prompts:
            arguments = (name, settings.samples, config.seed, stream.data.caption_choice)
            try:
                prompts = data_prompts(sources[name], generator.conditions, *arguments)
            except DataError as error:
                raise ConfigError(f"training.preview.prompts: name some for {name}; {error}") from error
        rate = {"image": 0, "video": getattr(stream.media, "fps", 0), "audio": getattr(stream.media, "sample_rate", 0)}
        made[name] = Previewed(prompts, stream.sampling, float(rate[name]))
    load_autoencoders(generator.adapters)  # of runs on latents, too: missing weights are told at once
    return Preview(settings, Path(config.run) / "samples", generator, made)


def build_validation(config: Config, generator: Generator, root: Path) -> Validation:
    loaded = LoadedRun(config, generator, 0, root, Path(config.run))
    settings, measured = config.training.validate, {}
    for name, stream in config.modalities.streams().items():
        if stream.heldout is None:
            print(f"note: {name} is not validated: modalities.{name}.heldout is not set", file=sys.stderr)
            continue
        how = replace(stream.evaluation, heldout=settings.records, measures=list(MEASURES))
        subject = evaluation_subject(loaded, stream, name)
        plan(subject, how)  # refuses records that are trained on
        measured[name] = Validated(subject, how, pair_plan(config, generator.trunk, generator.adapters[name], name))
    return Validation(settings.every, Path(config.run) / "validation.jsonl", measured)
