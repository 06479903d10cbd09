"""selfflow export: a run's weights as a file of another project's kind."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.runs import LoadedRun, load_run
from configs.weight_metadata import autoencoder_digests, weights_meaning
from core.trunk.foreign import KINDS, export_weights, holds_meaning

EXAMPLES = f"""examples:
  selfflow export --run runs/imagenet --to selfflow.pt --kind selfflow
  selfflow export --run runs/imagenet --to sit.pt --kind sit --drop projector
  selfflow export --run runs/imagenet --step 400000 --student --to student.safetensors --kind native-sit
  selfflow export --run runs/joint --to joint.safetensors --kind native-mmdit
  selfflow export --run runs/joint --ema-length 0.08 --to longer.safetensors --kind native-mmdit

Every file comes back with `selfflow import`. A kind that cannot hold the trunk is refused with the reasons.

The file also says what the weights mean: settings that no shape shows (heads, rotary base, time scale, ...), statistics
of the latents, class names, how text is read, and this project's version. `import` compares them. In .safetensors they
are the metadata `selfflow` (JSON), which other readers ignore.

kinds:
{chr(10).join(f"  {name:14}{kind.about}" for name, kind in KINDS.items())}
"""


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
    parser.add_argument("--to", type=Path, required=True, help="new file, .pt or .safetensors")
    parser.add_argument("--kind", choices=tuple(KINDS), required=True)
    parser.add_argument("--drop", action="append", default=[], metavar="PART", help="leave a part of the trunk out")
    parser.add_argument("--projectors", help="order in which a REPA file numbers the trunk's projectors: A,B")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    which = "student" if options.student else "ema"
    loaded = load_run(options.folder, options.step, device="cpu", weights=which, ema_length=options.ema_length)
    trunk = loaded.generator.trunk
    names = options.projectors.split(",") if options.projectors else None
    export_weights(trunk, trunk.state_dict(), options.to, options.kind, options.drop, names, run_meaning(loaded))
    which = "student" if options.student else "EMA"
    if options.ema_length is not None:
        which = f"EMA (length {options.ema_length:g})"
    print(f"{which} weights of step {loaded.step} as kind {options.kind}: {options.to}")
    if not holds_meaning(options.kind, options.to):
        print("note: a .pt file of this kind cannot say what its weights mean; a .safetensors file does")
    return 0


def run_meaning(loaded: LoadedRun) -> dict:
    """What the weights of a run mean, see configs/weight_metadata.py."""
    assembly, extra = loaded.assembly, loaded.assembly.stored
    assert extra is not None  # of a run that was loaded
    digests = autoencoder_digests(loaded.config, extra.get("autoencoders", {}), loaded.root)
    text = extra.get("text", "")
    return weights_meaning(loaded.config, assembly.adapters, assembly.labels, assembly.normalization, digests, text)
