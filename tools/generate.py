"""selfflow generate: pictures, clips and sounds from a trained run."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from configs.captions import text_limit
from configs.networks import load_autoencoders
from configs.runs import WEIGHTS, LoadedRun, load_run
from core.errors import ConfigError
from core.keys import generator
from core.sampler import SOLVERS, SamplerConfig
from core.sde import DIFFUSION_FORMS, LAST_STEPS
from modalities.base import Record
from modalities.generation import Known, generate, guidance_problem
from modalities.media.writing import write_grid
from modalities.text import describe_cut
from tools.numbered import next_number, write_grid_file, write_numbered
from tools.outputs import output_folder

EXAMPLES = """examples:
  selfflow generate image --run runs/quickstart --prompt "a red circle" --number 4
  selfflow generate image --run runs/quickstart --prompt "a red circle" --image cat.png --mask hole.png
  selfflow generate video --run runs/quickstart --prompt "a blue cross moving left" --guidance 3
  selfflow generate video --run runs/quickstart --prompt "a red circle moving up" --first-frame frame.png
  selfflow generate audio --run runs/quickstart --prompt "notes C E G" --steps 50 --solver heun
  selfflow generate audio --run runs/quickstart --prompt "notes C E G" --continue start.wav
  selfflow generate image --run runs/quickstart --prompt "a circle" --guidance 3 --negative "a red circle"
  selfflow generate image --run runs/quickstart --prompt "a red circle" --weights student --step 2000
  selfflow generate image --run runs/unconditional --number 8        a run with condition.kind: none takes no prompt

Beside every file stands a .json with all that made it. The same seed gives the same bytes for any --batch-size.
Nothing is overwritten: the numbers that files begin with go on behind the highest one in the folder.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="make pictures, clips and sounds with a trained run",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("modality", choices=("image", "video", "audio"))
    parser.add_argument("--run", dest="folder", type=Path, required=True, help="run folder")
    parser.add_argument("--step", type=int, help="checkpoint; the newest intact one unless set")
    parser.add_argument("--weights", choices=tuple(WEIGHTS), default="ema", help="default ema")
    wanted = parser.add_mutually_exclusive_group()  # neither for runs without conditions
    wanted.add_argument("--prompt", action="append", help="text; may be given several times")
    wanted.add_argument("--class", dest="label", action="append", help="class name, for runs with labels")
    parser.add_argument("--negative", help="text or class name that guidance leads away from; needs --guidance")
    parser.add_argument("--number", type=int, default=1, help="samples of each prompt (default 1)")
    parser.add_argument("--out", type=Path, help="output folder (default RUN/generated/MODALITY)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8, help="samples at once (default 8)")
    parser.add_argument("--ema-length", type=float, help="weights of a post-hoc EMA of this length, such as 0.08")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--text-encoder", help="folder or hub name of the run's text encoder, where the run names none")
    sampler = parser.add_argument_group("sampler (defaults: the run's modalities.MODALITY.sampling)")
    sampler.add_argument("--solver", choices=tuple(SOLVERS))
    sampler.add_argument("--steps", type=int)
    sampler.add_argument("--shift", type=float, help="alpha of the time grid's shift; above 1 spends steps at noise")
    sampler.add_argument("--guidance", type=float, help="guidance scale; 1 switches it off")
    sampler.add_argument("--interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="noise times with guidance")
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
    known = parser.add_argument_group("keeping a part")
    known.add_argument("--image", type=Path, help="image: the picture to paint into, with --mask")
    known.add_argument("--mask", type=Path, help="image: light pixels are painted anew, dark ones are kept")
    known.add_argument("--first-frame", type=Path, help="video: a picture to start from")
    known.add_argument("--continue", dest="prefix", type=Path, help="audio: a sound to continue")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.number < 1 or options.batch_size < 1:
        raise ConfigError("--number and --batch-size must be at least 1")
    if options.ema_length is not None and options.weights != "ema":
        raise ConfigError("--ema-length: is an average; not with --weights student")
    out = output_folder(options.out or options.folder / "generated" / options.modality, "--out")
    loaded = load_run(
        options.folder, options.step, options.device, options.text_encoder, options.weights, options.ema_length
    )
    streams = loaded.config.modalities.streams()
    if options.modality not in streams:
        raise ConfigError(f"{options.folder} was not trained on {options.modality}; it has {', '.join(streams)}")
    prompts = [prompt for prompt in asked(options, loaded) for _ in range(options.number)]
    settings = sampler_settings(options, streams[options.modality].sampling)
    check_negative(options, loaded, settings)
    for line in dict.fromkeys(
        line for prompt in prompts for line in warnings(loaded, prompt, settings, options.negative)
    ):
        print(f"warning: {line}", file=sys.stderr)
    known = known_part(options, loaded)
    load_autoencoders({options.modality: loaded.generator.adapters[options.modality]})  # missing ones are told at once
    files = generate_files(
        loaded, options.modality, prompts, settings, options.seed, out, known, options.batch_size, options.negative
    )
    print(f"{len(files)} files in {out}: {files[0].name}" + (f" to {files[-1].name}" if len(files) > 1 else ""))
    return 0


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

    Guidance that is a run's own default without a condition is told by `warnings`; it changes nothing.
    """
    condition = loaded.config.condition
    if options.negative is not None and settings.guidance == 1:
        raise ConfigError("--negative: is not read without guidance; set a scale above 1, such as --guidance 3")
    if condition.kind == "none" and options.guidance is not None and (problem := guidance_problem(condition, settings)):
        raise ConfigError(f"--{problem}")
    if options.negative is not None and condition.kind == "label":
        loaded.generator.context([options.negative])  # an unknown class is told now


def warnings(loaded: LoadedRun, prompt: str, settings: SamplerConfig, negative: str | None) -> list[str]:
    """What a person should know of one sample: printed once, and kept in its .json."""
    found = prompt_warnings(loaded, [prompt] if negative is None else [prompt, negative])
    problem = guidance_problem(loaded.config.condition, settings)
    if problem and negative is None:  # a negative prompt takes the place of the null condition
        found.append(problem)
    return found


def sampler_settings(options: argparse.Namespace, defaults: SamplerConfig) -> SamplerConfig:
    """The run's defaults with what the command line sets; raises ConfigError for values out of range.

    With another solver than the run's, settings that only the run's solver reads fall back to their defaults.
    """
    if options.solver is not None and options.solver != defaults.solver:
        defaults = defaults.for_solver(options.solver)
    given = {entry.name: getattr(options, entry.name, None) for entry in fields(SamplerConfig)}
    if options.interval:
        given["guidance_low"], given["guidance_high"] = options.interval
    settings = replace(defaults, **{name: value for name, value in given.items() if value is not None})
    if found := settings.problems():
        raise ConfigError(map(_as_option, found))
    return settings


def _as_option(problem: str) -> str:
    """A line of `problems` under the names of the command line."""
    names, rest = problem.split(":", 1)
    both = {"guidance_low": "interval", "guidance_high": "interval"}  # one option sets both
    options = dict.fromkeys(both.get(name, name) for name in names.split(", "))
    return f"{', '.join(f'--{option}' for option in options).replace('_', '-')}:{rest}"


def known_part(options: argparse.Namespace, loaded: LoadedRun) -> Known | None:
    """What is to be kept, from the files on the command line."""
    meant = {"image": options.image or options.mask, "video": options.first_frame, "audio": options.prefix}
    for modality, path in meant.items():
        if path is not None and modality != options.modality:
            raise ConfigError(f"{path}: this option goes with `generate {modality}`, not with {options.modality}")
    if meant[options.modality] is None:
        return None
    adapter = loaded.generator.adapters[options.modality]
    cut = [generator(options.seed, "known") for _ in range(2)]  # one state twice: picture and mask are cut alike
    if options.modality == "image":
        if options.image is None or options.mask is None:
            raise ConfigError("--image and --mask go together")
        mask = adapter.load_mask(file_record(options.mask), cut[0])
        media = adapter.load(file_record(options.image), cut[1])
        return Known(media, adapter.given_from_image_mask(mask), mask)
    if options.modality == "video":
        media = adapter.load_first_frame(file_record(options.first_frame), cut[0])
        first = torch.arange(media.shape[0]) == 0
        return Known(media, adapter.given_first_frame(), first[:, None, None, None])
    media, samples = adapter.load_prefix(file_record(options.prefix))
    return Known(media, adapter.given_prefix(samples), adapter.kept_prefix(samples))


def file_record(path: Path) -> Record:
    return Record(key=str(path), origin=str(path), media=path, suffix=path.suffix.lower())


def generate_files(
    loaded: LoadedRun,
    modality: str,
    prompts: list[str],
    settings: SamplerConfig,
    seed: int,
    out: Path,
    known: Known | None = None,
    batch_size: int = 8,
    negative: str | None = None,
) -> list[Path]:
    """Write one media file and one .json for each prompt, and a labelled grid of several pictures.

    No file is overwritten; numbers go on behind the highest one in the folder. Raises DataError where one cannot be
    written.
    """
    texts = prompt_lengths(loaded, prompts)
    adapter, files, pictures = loaded.generator.adapters[modality], [], []
    number, shared = next_number(out), {"seed": seed, "weights": loaded.weights, "step": loaded.step}
    with tqdm(total=len(prompts) * settings.steps, unit="step", desc=modality, dynamic_ncols=True) as bar:
        made = generate(loaded.generator, modality, prompts, settings, seed, known, batch_size, bar.update, negative)
        for index, (prompt, media) in enumerate(zip(prompts, made, strict=True)):
            about = {
                "prompt": prompt,
                "negative": negative,
                "modality": modality,
                **texts.get(prompt, {}),
                "index": index,
                **shared,
                "method": loaded.config.method,
                "kept": known is not None,
                "sampler": asdict(settings),
                "warnings": warnings(loaded, prompt, settings, negative),
                "torch": torch.__version__,
            }
            if loaded.ema_length is not None:
                about["ema_length"] = loaded.ema_length
            number, path = write_numbered(out, slug(prompt), number, about, partial(adapter.write, media))
            number += 1
            files.append(path)
            if modality == "image":
                pictures.append(media)
    if len(pictures) > 1:
        about = {"files": [path.name for path in files], "prompts": prompts, **shared}
        write_grid_file(out, about, partial(write_grid, torch.stack(pictures), labels=prompts))
    return files


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
