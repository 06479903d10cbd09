"""selfflow finetune: train on other streams from a run's weights, whose modalities may differ."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.init_from import Initial
from tools import train

EXAMPLES = """examples:
  selfflow finetune configs/rt1.yaml --from runs/joint run=runs/rt1
  selfflow finetune my.yaml --from weights.safetensors run=runs/tuned training.steps=5000

Starts a new run from the EMA weights of a run, or from a file that `selfflow import` reads. Input and output layers of
a modality, and projectors, that only one of the two has are left out or initialized, and named; everything else must
fit, as with `selfflow train --init-from`. The same command resumes.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "finetune",
        help="train on other data from the weights of a run",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_run_arguments(parser)
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="RUN|FILE", help="weights")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    return train.start(options, Initial(options.source, by_modality=True))
