"""selfflow generate: images, videos, audio, and what a stream has several of, from a trained run."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from configs.assembly.adapters import load_autoencoders
from configs.buckets import of_size
from configs.captions import text_limit
from configs.devices import generate_on
from configs.runs import WEIGHTS, LoadedRun, load_run
from core.errors import ConfigError
from core.kinds import field_names
from core.parallel import DEVICES, check_devices
from core.progress import ProgressBar
from core.sampling.config import SHIFT_RULES
from core.sampling.parts import PartSampling
from core.sampling.plan import part_name_problems
from core.sampling.sampler import SOLVERS, SamplerConfig
from core.sampling.sde import DIFFUSION_FORMS, LAST_STEPS
from core.shift import FIXED
from core.training.config import from_plain, to_plain
from core.training.settings import UserSettings, merge, parse_override
from core.trunk.foreign.lora_read import merge_adapter, read_adapter
from modalities.base import Known
from modalities.conditioning import describe_cut
from modalities.generation import Watch, guidance_problem, sampler_steps
from modalities.media.writing import write_grid
from modalities.sample_files import write_parts
from modalities.table import MODALITIES
from tools.generate.given import as_option, as_option_line, given_files, known_files, known_parts
from tools.generate.numbered import next_number, write_grid_file, write_numbered
from tools.outputs import output_folder

EXAMPLES = """examples:
  selfflow generate image --run runs/quickstart --prompt "a red circle" --number 4
  selfflow generate image --run runs/quickstart --prompt "a red circle" --image cat.png --mask hole.png
  selfflow generate video --run runs/quickstart --prompt "a blue cross moving left" --cfg-scale 3
  selfflow generate video --run runs/quickstart --prompt "a red circle moving up" --first-frame frame.png
  selfflow generate audio --run runs/quickstart --prompt "notes C E G" --steps 50 --solver heun
  selfflow generate audio --run runs/quickstart --prompt "notes C E G" --continue start.wav
  selfflow generate videos --run runs/videos --prompt "a red circle" --video silent.mp4     its audio, as one MP4
  selfflow generate videos --run runs/videos --prompt "a red circle" --audio melody.wav     a video to an audio clip
  selfflow generate image --run runs/quickstart --prompt "a circle" --cfg-scale 3 --negative "a red circle"
  selfflow generate image --run runs/quickstart --prompt "a red circle" --weights student --step 2000
  selfflow generate image --run runs/unconditional --number 8        a run with condition.kind: none takes no prompt

Beside every file stands a .json with all that made it. The same seed gives the same bytes for any --batch-size.
Nothing is overwritten: the numbers that files begin with continue after the highest one in the folder.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="make images, videos and audio with a trained run",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stream", help="a stream of the run, such as image")
    parser.add_argument("--run", dest="folder", type=Path, required=True, help="run folder")
    parser.add_argument("--step", type=int, help="checkpoint; the newest intact one unless set")
    parser.add_argument("--weights", choices=tuple(WEIGHTS), default="ema", help="default ema")
    wanted = parser.add_mutually_exclusive_group()  # neither for runs without conditions
    wanted.add_argument("--prompt", action="append", help="text; may be given several times")
    wanted.add_argument("--class", dest="label", action="append", help="class name, for runs with labels")
    parser.add_argument("--negative", help="text or class name that guidance leads away from; needs --cfg-scale")
    parser.add_argument("--size", metavar="HxW", help="of a stream trained at several sizes: which of them")
    parser.add_argument("--number", type=int, default=1, help="samples of each prompt (default 1)")
    parser.add_argument("--out", type=Path, help="output folder (default RUN/generated/STREAM)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8, help="samples at once (default 8)")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help=DEVICES)
    parser.add_argument("--ema-length", type=float, help="weights of a post-hoc EMA of this length, such as 0.08")
    parser.add_argument("--lora", type=Path, metavar="FILE", help="LoRA file that is merged into the run's weights")
    parser.add_argument("--lora-strength", type=float, default=1.0, help="factor of its changes (default 1)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--text-encoder", help="folder or hub name of the run's text encoder, where the run names none")
    sampler = parser.add_argument_group("sampler (defaults: the run's streams.STREAM.sampling)")
    sampler.add_argument("--solver", choices=tuple(SOLVERS))
    sampler.add_argument("--steps", type=int)
    sampler.add_argument("--shift", type=float, help="alpha of the time grid's shift; above 1 spends steps at noise")
    sampler.add_argument("--shift-rule", choices=SHIFT_RULES, help="how the shift follows the number of tokens")
    sampler.add_argument("--cfg-scale", type=float, help="classifier-free guidance scale; 1 switches it off")
    sampler.add_argument(
        "--cfg-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="times at which guidance acts"
    )
    sampler.add_argument("--start", type=float, help="first time, before the shift")
    sampler.add_argument("--end", type=float, help="last time, before the shift")
    sampler.add_argument("--correct-last", action=argparse.BooleanOptionalAction, help="heun: correct the last step")
    sampler.add_argument("--atol", type=float, help="dopri5: absolute tolerance")
    sampler.add_argument("--rtol", type=float, help="dopri5: relative tolerance")
    sampler.add_argument("--land-on-end", action=argparse.BooleanOptionalAction, help="dopri5: last step ends at --end")
    sampler.add_argument("--diffusion-form", choices=tuple(DIFFUSION_FORMS), help="SDE")
    sampler.add_argument("--diffusion-norm", type=float, help="SDE: scale of the diffusion")
    sampler.add_argument("--last-step", choices=tuple(LAST_STEPS), help="SDE: how the last step reaches the data")
    sampler.add_argument("--last-step-size", type=float, help="SDE: where the last step begins")
    sampler.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="NAME.SETTING=VALUE",
        help="of one part of several, such as video.stop_at=0.6, action.steps=10 or video.absent=true",
    )
    known = parser.add_argument_group(
        "giving a part, or some of it", "What is given comes back as it is. Of parts with one modality: NAME=FILE."
    )
    for name, modalities in known_files().items():
        (help_text,) = {MODALITIES[modality].adapter.known_files[name] for modality in modalities}
        label = f"{', '.join(modalities)}: {help_text}"
        known.add_argument(as_option(name), dest=f"file_{name}", metavar="FILE", help=label)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.number < 1 or options.batch_size < 1:
        raise ConfigError("--number and --batch-size must be at least 1")
    check_devices(options.devices)
    if options.ema_length is not None and options.weights != "ema":
        raise ConfigError("--ema-length: is an average; not with --weights student")
    if options.lora is None and options.lora_strength != 1:
        raise ConfigError("--lora-strength: is not read without --lora FILE")
    if not math.isfinite(options.lora_strength):
        raise ConfigError(f"--lora-strength: {options.lora_strength} must be a finite number")
    if options.lora is not None and options.devices != 1:
        raise ConfigError("--lora: is merged in this process alone; not with several --devices")
    out = output_folder(options.out or options.folder / "generated" / options.stream, "--out")
    loaded = load_run(
        options.folder, options.step, options.device, options.text_encoder, options.weights, options.ema_length
    )
    if options.lora is not None:
        merge_adapter(loaded.generator.trunk, read_adapter(loaded.generator.trunk, options.lora), options.lora_strength)
        loaded = replace(loaded, lora=f"{options.lora} x {options.lora_strength:g}")
    wanted = prepare(options, loaded)
    for line in request_warnings(options, loaded, wanted):
        print(f"warning: {line}", file=sys.stderr)
    files = make(options, loaded, wanted, out)
    print(f"{len(files)} files in {out}: {files[0].name}" + (f" to {files[-1].name}" if len(files) > 1 else ""))
    return 0


@dataclass(frozen=True)
class Prepared:
    """A request that was checked against the run.

    Attributes:
        prompts: one for each sample.
        known: name of a part -> what is kept of it.
    """

    prompts: list[str]
    settings: SamplerConfig
    known: dict[str, Known]


def prepare(options: argparse.Namespace, loaded: LoadedRun) -> Prepared:
    """What the options ask of a run. Raises ConfigError for what it cannot do, DataError for files it cannot read."""
    streams = loaded.config.streams
    options.stream = of_size(streams, options.stream, options.size)
    parts = loaded.generator.parts[options.stream]
    prompts = [prompt for prompt in asked(options, loaded) for _ in range(options.number)]
    settings = sampler_settings(options, streams[options.stream].sampling)
    if found := part_name_problems(settings, list(parts)):
        raise ConfigError(map(as_option_line, found))
    check_negative(options, loaded, settings)
    return Prepared(prompts, settings, known_parts(options, parts))


def request_warnings(options: argparse.Namespace, loaded: LoadedRun, wanted: Prepared) -> list[str]:
    """What a person should know of the samples of a request, each once."""
    found = [line for prompt in wanted.prompts for line in warnings(loaded, prompt, wanted.settings, options.negative)]
    return list(dict.fromkeys(found))


def make(
    options: argparse.Namespace,
    loaded: LoadedRun,
    wanted: Prepared,
    out: Path,
    progress: Callable[[int], object] | None = None,
    watch: Watch | None = None,
) -> list[Path]:
    """Write the samples of a request into `out`; the arguments and the result are those of `generate_files`."""
    adapters = loaded.assembly.adapters
    load_autoencoders(loaded.config, {options.stream: adapters[options.stream]})  # missing ones are reported at once
    return generate_files(
        loaded,
        options.stream,
        wanted.prompts,
        wanted.settings,
        options.seed,
        out,
        wanted.known,
        options.batch_size,
        options.negative,
        given_files(options),
        progress,
        watch,
        options.devices,
    )


def asked(options: argparse.Namespace, loaded: LoadedRun) -> list[str]:
    """The texts or class names on the command line; one empty text for a run without a condition."""
    kind = loaded.config.condition.kind
    given = {"--prompt": options.prompt, "--class": options.label}
    wanted = {"label": "--class", "none": None}.get(kind, "--prompt")
    wrong = any(values is not None for values in given.values())
    if wanted is None:
        if wrong or options.negative is not None:
            raise ConfigError(f"{options.folder} was trained with condition.kind 'none'; ask with --number N alone")
        return [""]
    if given[wanted] is None:
        example = "--class NAME" if wanted == "--class" else '--prompt "TEXT"'
        raise ConfigError(f"{options.folder} was trained with condition.kind {kind!r}; ask with {example}")
    return given[wanted]


def check_negative(options: argparse.Namespace, loaded: LoadedRun, settings: SamplerConfig) -> None:
    """Raises ConfigError where nothing would read it, and where guidance without a condition is asked for.

    Guidance that is a run's own default without a condition is reported by `warnings`; it changes nothing.
    """
    condition = loaded.config.condition
    if options.negative is not None and settings.guidance() == 1:
        raise ConfigError("--negative: is not read without guidance; set a scale above 1, such as --cfg-scale 3")
    if (
        condition.kind == "none"
        and options.cfg_scale is not None
        and (problem := guidance_problem(condition, settings))
    ):
        raise ConfigError(as_option_line(problem))
    if options.negative is not None and condition.kind == "label":
        loaded.generator.context([options.negative])  # an unknown class is reported now


def warnings(loaded: LoadedRun, prompt: str, settings: SamplerConfig, negative: str | None) -> list[str]:
    """What a person should know of one sample: printed once, and kept in its .json."""
    found = prompt_warnings(loaded, [prompt] if negative is None else [prompt, negative])
    problem = guidance_problem(loaded.config.condition, settings)
    if problem and negative is None:  # a negative prompt takes the place of the null condition
        found.append(problem)
    return found


def sampler_settings(options: argparse.Namespace, defaults: SamplerConfig) -> SamplerConfig:
    """The run's defaults with what the command line sets; raises ConfigError for values out of range.

    With another solver than the run's, settings that only the run's solver has are left behind. Settings of parts are
    added to the run's own.
    """
    names = dict.fromkeys(name for solver in SOLVERS.values() for name in field_names(solver))
    given = {name: getattr(options, name, None) for name in names}
    if options.shift is not None and options.shift_rule is None:
        given["shift_rule"] = FIXED  # a number in place of the run's rule
    try:
        settings = defaults.changed(**{name: value for name, value in given.items() if value is not None})
    except ConfigError as error:
        raise ConfigError(map(as_option_line, error.problems)) from error
    return with_parts(settings, options.part) if options.part else settings


def with_parts(settings: SamplerConfig, wanted: Sequence[str]) -> SamplerConfig:
    """The settings with NAME.SETTING=VALUE of parts. Raises ConfigError for unknown settings and wrong types."""
    given = UserSettings({}, {}, {}, [])
    for text in wanted:
        given.add(parse_override(text))
    if given.problems:
        raise ConfigError(line.replace("command line", "--part", 1) for line in given.problems)
    try:
        found = from_plain(type(settings), merge(to_plain(settings), {"parts": given.values}))
        if problems := found.problems():
            raise ConfigError(problems)
    except ConfigError as error:
        raise ConfigError(map(as_option_line, error.problems)) from error
    return found


def generate_files(
    loaded: LoadedRun,
    stream: str,
    prompts: list[str],
    settings: SamplerConfig,
    seed: int,
    out: Path,
    known: Mapping[str, Known] | None = None,
    batch_size: int = 8,
    negative: str | None = None,
    files: Mapping[str, str] | None = None,
    progress: Callable[[int], object] | None = None,
    watch: Watch | None = None,
    devices: int = 1,
) -> list[Path]:
    """Write every sample with its .json, and a labeled grid of several images; returns the first file of each.

    No file is overwritten; numbers continue after the highest one in the folder. Raises DataError where one cannot be
    written.

    Args:
        known: name of a part -> what is kept of it.
        files: name of an option -> the file that was given by it, for the .json.
        progress: called after every step of the sampler with the number of samples that took it, in place of a bar.
        watch: as in `modalities.generation.generate`.
        devices: that make the samples, with a process each; changes no byte on CPUs.
    """
    texts, known = prompt_lengths(loaded, prompts), known or {}
    parts, written, images = loaded.generator.parts[stream], [], []
    number, shared = next_number(out), {"seed": seed, "weights": loaded.weights, "step": loaded.step}
    total, hidden = len(prompts) * sampler_steps(parts, settings), progress is not None
    with ProgressBar(total=total, unit="step", desc=stream, disable=hidden) as bar:
        tick = progress or bar.update
        made = generate_on(devices, loaded, stream, prompts, settings, seed, known, batch_size, tick, negative, watch)
        for index, (prompt, media) in enumerate(zip(prompts, made, strict=True)):
            about = {
                "prompt": prompt,
                "negative": negative,
                "stream": stream,
                "parts": {
                    name: described_part(part.adapter.modality, known.get(name), settings.parts.get(name))
                    for name, part in parts.items()
                },
                "files": dict(files or {}),
                **texts.get(prompt, {}),
                "index": index,
                **shared,
                "method": loaded.config.method,
                "sampler": asdict(settings),
                "warnings": warnings(loaded, prompt, settings, negative),
                "torch": torch.__version__,
            }
            if loaded.lora:
                about["lora"] = loaded.lora
            if loaded.ema_length is not None:
                about["ema_length"] = loaded.ema_length
            number, paths = write_numbered(out, slug(prompt), number, about, partial(write_parts, parts, media))
            number += 1
            written.append(paths[0])
            if len(parts) == 1 and paths[0].suffix == ".png":
                images += media.values()
    if len(images) > 1:
        about = {"files": [path.name for path in written], "prompts": prompts, **shared}
        write_grid_file(out, about, partial(write_grid, torch.stack(images), labels=prompts))
    return written


def described_part(modality: str, known: Known | None, sampling: PartSampling | None = None) -> dict[str, str]:
    """What happened to a part, for the .json: made, given as a whole, kept in part, absent or omitted."""
    if sampling is not None and not sampling.sampled:
        return {"modality": modality, "was": "absent" if sampling.absent else "omitted"}
    if known is None:
        return {"modality": modality, "was": "made"}
    return {"modality": modality, "was": "given" if bool(known.conditioning_mask.all()) else "kept in part"}


def prompt_warnings(loaded: LoadedRun, prompts: list[str]) -> list[str]:
    """What the run's text limits cut off prompts, a line for each."""
    limit = text_limit(loaded.config.condition, loaded.generator.text)
    distinct = list(dict.fromkeys(prompts))
    if limit is None:
        return []
    found = zip(distinct, limit.measure(distinct), strict=True)
    return [line for prompt, length in found for line in describe_cut(prompt, length, limit)]


def prompt_lengths(loaded: LoadedRun, prompts: list[str]) -> dict[str, dict]:
    """prompt -> what the JSON beside a file says about its length; empty for runs without texts."""
    limit = text_limit(loaded.config.condition, loaded.generator.text)
    distinct = list(dict.fromkeys(prompts))
    if limit is None:
        return {}
    return {
        prompt: {
            "text": {
                limit.unit: length.length,
                "limit": limit.limit,
                "cut": limit.cut(length),
                "words_read_in_part": {word: round(share, 3) for word, share in length.shortened},
            }
        }
        for prompt, length in zip(distinct, limit.measure(distinct), strict=True)
    }


def slug(text: str) -> str:
    """A short file name from a prompt."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "sample"
