"""selfflow export: a run's weights as a file of another project's kind."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from configs.released import release
from configs.runs import LoadedRun, load_run
from configs.weight_metadata import autoencoder_digests, weights_meaning
from core.errors import ConfigError
from core.trunk.foreign import KINDS, export_weights, holds_meaning
from core.trunk.foreign.lora import LAYOUTS, export_adapter, merged
from core.trunk.foreign.strict import cast

EXAMPLES = f"""examples:
  selfflow export --run runs/imagenet --to selfflow.pt --kind selfflow
  selfflow export --run runs/imagenet --to sit.pt --kind sit --drop projector
  selfflow export --run runs/imagenet --step 400000 --student --to student.safetensors --kind native-sit
  selfflow export --run runs/joint --to joint.safetensors --kind native-mmdit
  selfflow export --run runs/joint --ema-length 0.08 --to longer.safetensors --kind native-mmdit
  selfflow export --run runs/joint --to passed_on --kind run --type bf16
  selfflow export --run runs/style --to style.safetensors --kind lora
  selfflow export --run runs/style --to merged.safetensors --kind flux2 --drop projector --type bf16

Every file comes back with `selfflow import`. A kind that cannot hold the trunk is refused with the reasons.

Kind run is a folder that `generate --run`, `app` and `evaluate` read like a run: the weights, and the settings and
statistics that they need. It has no optimizer and no student, so that it is small enough to pass on.

The file also says what the weights mean: settings that no shape shows (heads, rotary base, time scale, ...), statistics
of the latents, class names, how text is read, and this project's version. `import` compares them. In .safetensors they
are the metadata `selfflow` (JSON), which other readers ignore.

A run with training.adapter gives its LoRA (kinds lora, lora-diffusers), or with any other kind its weights with the
adapter merged into them.

kinds:
  run           a folder to pass on: --to FOLDER, without projectors
  lora          the adapter of a run, as diffusers (load_lora_weights) and ComfyUI read it: the authors' names
  lora-diffusers  the same as diffusers' load_lora_adapter reads it: its own names
{chr(10).join(f"  {name:14}{kind.about}" for name, kind in KINDS.items())}
"""

RUN = "run"
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write a run's weights to a file",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", dest="folder", type=Path, required=True, help="run folder")
    parser.add_argument("--step", type=int, help="checkpoint; the newest intact one unless set")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--student", action="store_true", help="the trained weights instead of their EMA")
    weights.add_argument("--ema-length", type=float, help="post-hoc EMA of this length, of runs with posthoc_ema")
    parser.add_argument("--to", type=Path, required=True, help="new file, .pt or .safetensors; of kind run a folder")
    parser.add_argument("--kind", choices=(RUN, *KINDS, *LAYOUTS), required=True)
    parser.add_argument(
        "--type", choices=tuple(TYPES), help="of the numbers in the file; as they are trained unless set"
    )
    parser.add_argument("--drop", action="append", default=[], metavar="PART", help="leave a part of the trunk out")
    parser.add_argument("--projectors", help="order in which a REPA file numbers the trunk's projectors: A,B")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    which = "student" if options.student else "ema"
    loaded = load_run(options.folder, options.step, device="cpu", weights=which, ema_length=options.ema_length)
    trunk = loaded.generator.trunk
    names = options.projectors.split(",") if options.projectors else None
    state, adapter, meaning = trunk.state_dict(), loaded.config.training.adapter, run_meaning(loaded)
    if options.kind == RUN:
        pass_on(options, loaded, state if adapter is None else merged(state, adapter.scale), meaning)
    elif options.kind in LAYOUTS:
        scale = 1.0 if adapter is None else adapter.scale
        export_adapter(trunk, state, scale, options.to, options.kind, meaning)
    else:
        state = state if adapter is None else merged(state, adapter.scale)
        state = state if options.type is None else cast(state, TYPES[options.type])
        export_weights(trunk, state, options.to, options.kind, options.drop, names, meaning)
    which = "student" if options.student else "EMA"
    if options.ema_length is not None:
        which = f"EMA (length {options.ema_length:g})"
    print(f"{which} weights of step {loaded.step} as kind {options.kind}: {options.to}")
    if options.kind in KINDS and not holds_meaning(options.kind, options.to):
        print("note: a .pt file of this kind cannot say what its weights mean; a .safetensors file does")
    return 0


def pass_on(options: argparse.Namespace, loaded: LoadedRun, state: dict[str, Tensor], meaning: dict) -> None:
    """The folder of kind run. Raises ConfigError for options that name parts of a file."""
    if options.drop or options.projectors:
        raise ConfigError("--drop, --projectors: not with --kind run, which has the whole trunk without projectors")
    assert loaded.assembly.stored is not None  # of a run that was loaded
    dtype = None if options.type is None else TYPES[options.type]
    trunk, extra = loaded.generator.trunk, loaded.assembly.stored
    release(options.to, trunk, state, loaded.step, loaded.weights, extra, dtype, meaning)


def run_meaning(loaded: LoadedRun) -> dict:
    """What the weights of a run mean, see configs/weight_metadata.py."""
    assembly, extra = loaded.assembly, loaded.assembly.stored
    assert extra is not None  # of a run that was loaded
    digests = autoencoder_digests(loaded.config, extra.get("autoencoders", {}), loaded.root)
    text = extra.get("text", "")
    return weights_meaning(loaded.config, assembly.adapters, assembly.labels, assembly.normalization, digests, text)
