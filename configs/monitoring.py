"""The hooks that observe a run while it trains, built from its configuration."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from configs.assembly import Assembly
from configs.assembly.adapters import load_autoencoders
from configs.buckets import EmptyBucketError, family
from configs.runs import evaluation_subject, pair_plan
from core.errors import ConfigError, DataError
from core.training.hooks import Hook
from modalities.evaluation.subject import plan
from modalities.monitoring.preview import Preview, Previewed
from modalities.monitoring.prompts import data_prompts
from modalities.monitoring.validation import MEASURES, Validated, Validation


def build_hooks(assembly: Assembly) -> list[Hook]:
    """The previews and validations that a run asks for; of its trunk, the student, only the shape is looked at.

    Raises ConfigError, before anything is trained, for what they need and do not have.
    """
    hooks: list[Hook] = []
    if assembly.config.training.preview.every:
        hooks.append(build_preview(assembly))
    if assembly.config.training.validate.every:
        hooks.append(build_validation(assembly))
    return hooks


def build_preview(assembly: Assembly) -> Preview:
    config, generator, made = assembly.config, assembly.generator, {}
    settings = config.training.preview
    for name, stream in config.streams.items():
        if given := [part for part, own in stream.parts.items() if own.given]:
            print(f"note: {name} has no previews: its {' and '.join(given)} would have to be given", file=sys.stderr)
            continue
        prompts = list(settings.prompts.get(family(name, stream), []))
        if prompts and config.condition.kind == "label":
            generator.conditions.context(prompts, torch.zeros(len(prompts), dtype=torch.bool))  # refuses unknown ones
        if not prompts:
            arguments = (name, settings.samples, config.seed, stream.data.caption_choice)
            try:
                prompts = data_prompts(assembly.sources[name], generator.conditions, *arguments)
            except DataError as error:
                raise ConfigError(f"training.preview.prompts: name some for {name}; {error}") from error
        made[name] = Previewed(prompts, stream.sampling)
    if not made:
        raise ConfigError(
            "training.preview.every: nothing can be previewed, since every stream has a part with `given: true`; "
            "set it to 0"
        )
    load_autoencoders(config, assembly.adapters)  # of runs on latents, too: missing weights are reported at once
    return Preview(settings, Path(config.run) / "samples", generator, made)


def build_validation(assembly: Assembly) -> Validation:
    config, measured = assembly.config, {}
    settings = config.training.validate
    for name, stream in config.streams.items():
        if stream.val is None:
            print(f"note: {name} is not validated: streams.{name}.val is not set", file=sys.stderr)
            continue
        how = replace(stream.evaluation, val=settings.records, measures=list(MEASURES))
        try:
            subject = evaluation_subject(assembly, name, stream)
        except EmptyBucketError as error:
            print(f"note: {name} is not validated: {error}", file=sys.stderr)
            continue
        plan(subject, how)  # refuses records that are trained on
        measured[name] = Validated(subject, how, pair_plan(assembly, assembly.trunk, name))
    return Validation(settings.every, Path(config.run) / "validation.jsonl", measured)
