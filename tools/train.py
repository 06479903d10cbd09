"""selfflow train: pretrain on any mix of modalities; run it again on the same folder to resume."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from configs.build import build_trainer
from configs.captions import caption_warnings
from configs.load import load_config
from configs.networks import build_text_encoder
from configs.runs import is_finished
from core.errors import ConfigError
from core.training.config import to_yaml
from tools.data_notes import report_data

EXAMPLES = """examples:
  selfflow train configs/quickstart.yaml run=runs/first
  selfflow train configs/quickstart.yaml run=runs/plain method=flow_matching
  selfflow train configs/quickstart.yaml run=runs/small training.steps=200 modalities.image.batch=16
  selfflow train configs/real_small.yaml --dry-run          check everything, train nothing, say what it would cost
  selfflow train configs/joint_625m.yaml --dry-run          the same, before there are data, weights or a GPU

The same command on an existing run folder resumes it, bit for bit. SIGTERM and Ctrl-C finish the step, publish a
checkpoint and leave.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="pretrain on images, video and audio",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")
    parser.add_argument("--dry-run", action="store_true", help="check data, shapes and model, print what a run costs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if options.print_config:
        print(to_yaml(config), end="")
        return 0
    if options.dry_run:
        from tools.dry_run import describe

        print(describe(config, options.config.parent))
        return 0
    if not config.run:
        raise ConfigError("run: names the folder of the run; add run=FOLDER")
    if is_finished(config):
        print(f"already finished: all {config.training.steps} steps are done; run folder: {config.run}")
        return 0
    trainer = build_trainer(config, options.config.parent)
    sources = {name: stream.source for name, stream in trainer.feed.dataset.streams.items()}
    report_data(sources, trainer.folder.path)
    if trainer.store.latest() is None:
        for line in caption_warnings(config, sources, build_text_encoder(config, options.config.parent)):
            print(f"warning: {line}", file=sys.stderr)
    result = trainer.fit()
    print(f"{result} after {trainer.step} of {config.training.steps} steps; run folder: {config.run}")
    return 0
