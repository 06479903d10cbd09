"""selfflow train: pretrain on any mix of streams; run it again on the same folder to resume."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.build import build_trainer, is_finished
from configs.captions import caption_warnings
from configs.changes import Resolved, resolve
from configs.init_from import Initial
from configs.load import load_config
from configs.schema import Config
from core.errors import AccidentError, BadStepError, CheckpointError, ConfigError, DataError, NotWrittenError
from core.training import distributed
from core.training.accidents import accidents_named
from core.training.checkpoint import CheckpointStore
from core.training.config import to_yaml
from core.training.distributed import World
from core.training.flight_recorder import record_exchanges, write_exchanges_to
from core.training.history import read_run
from core.training.records import note_end
from core.training.remote import bring
from core.training.say import say
from core.training.stop import Stopped, StopRequest
from core.training.trainer import Trainer
from core.training.watchdog import FOLDER as STACKS
from modalities.data.loader import StepLoader
from modalities.data.preprocess import DevicePreprocess
from tools.advice import after_bad_step, go_on, next_command
from tools.data_notes import report_data

EXAMPLES = """examples:
  selfflow train configs/quickstart.yaml run=runs/first
  selfflow train configs/quickstart.yaml run=runs/plain method=flow_matching
  selfflow train configs/quickstart.yaml run=runs/small training.steps=200 streams.image.batch=16
  selfflow train configs/real_small.yaml --dry-run          check everything, train nothing, say what it would cost
  selfflow train configs/joint_625m.yaml --dry-run          the same, before there are data, weights or a GPU

The same command on an existing run folder resumes it, bit for bit. SIGTERM and Ctrl-C finish the step, publish a
checkpoint and leave with exit code 75; a finished run has 0.
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "train",
        help="pretrain on images, video and audio",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--init-from", type=Path, metavar="RUN|FILE", help="start a new run from the EMA weights of a run, or a file"
    )
    parser.add_argument(
        "--init-drop", action="append", default=[], metavar="PATTERN", help="tensors of the source that are not taken"
    )
    parser.add_argument(
        "--init-fresh", action="append", default=[], metavar="PATTERN", help="tensors that the source need not have"
    )
    parser.add_argument("--dry-run", action="store_true", help="check data, shapes and model, print what a run costs")
    parser.set_defaults(run=run)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that trains."""
    parser.add_argument("config", type=Path, help="YAML file of the experiment")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    parser.add_argument(
        "--change", action="append", default=[], metavar="key=value", help="resume with another value from here on"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and leave")


def run(options: argparse.Namespace) -> int:
    initial = initial_weights(options)
    if not options.dry_run or options.print_config:
        return start(options, initial)
    if initial is not None:
        raise ConfigError("--init-from: --dry-run does not look at it; leave one of them out")
    from tools.dry_run.dry_run import describe

    config = resolve(options.config, options.overrides, options.change).config
    print(describe(config, options.config.parent))
    return 0


def start(options: argparse.Namespace, initial: Initial | None) -> int:
    """Start the run, or resume it; `initial` are the weights that a new one starts from."""
    record_exchanges()
    world = distributed.start()
    with world.errors_shared():
        code = _start(options, initial, world)
    world.close()
    return code


def _start(options: argparse.Namespace, initial: Initial | None, world: World) -> int:
    # Rank 0 alone looks into the run folder and reads its checkpoint, once.
    resolved = world.on_first(lambda: _resolved(options))
    config = resolved.config
    if options.print_config:
        if world.is_first:
            print(to_yaml(config), end="")
        return 0
    if not config.run:
        raise ConfigError("run: names the folder of the run; add run=FOLDER")
    for note in resolved.notes:
        say(note)
    if world.on_first(lambda: is_finished(config, resolved.change, resolved.store)):
        if resolved.change.arguments:
            raise ConfigError(
                f"--change: all {config.training.steps} steps of {config.run} are done; make it longer, too, with "
                "--change training.steps=NUMBER"
            )
        if world.is_first:
            if read_run(Path(config.run)).get("state") != "finished":  # killed behind its last checkpoint
                note_end(Path(config.run), "finished", config.training.steps)
            print(f"already finished: all {config.training.steps} steps are done; run folder: {config.run}")
        return 0
    write_exchanges_to(Path(config.run) / STACKS)
    with StopRequest(config.training.stop_within, f"To go on: {next_command(options, config, resolved.store)}") as stop:
        try:
            with world.errors_shared():
                return _train(options, resolved, initial, stop, world)
        except Stopped:
            say(f"stopped by {stop.reason} before the first step. {go_on(options, config)}")
            return AccidentError.exit_code


def _resolved(options: argparse.Namespace) -> Resolved:
    """The configuration, once the newest checkpoint is here, which may lie in an object store alone."""
    given = load_config(options.config, options.overrides)
    url, run = given.training.checkpoint_store, Path(given.run)
    if url and given.run and not options.print_config:
        brought = bring(url, run, CheckpointStore(run / "checkpoints").latest())
        if brought is not None:
            say(f"checkpoint of step {brought} was brought from {url}")
    return resolve(options.config, options.overrides, options.change)


def _train(
    options: argparse.Namespace, resolved: Resolved, initial: Initial | None, stop: StopRequest, world: World
) -> int:
    """The exit code. Whatever ends the run, its reason and the command to resume it are printed."""
    config = resolved.config
    try:
        with accidents_named(), stop.leavable():
            trainer = build_trainer(
                config, options.config.parent, resolved.change, initial, resolved.store, stop.advice, world
            )
            world.on_first(lambda: _tell(config, trainer))
    except (AccidentError, NotWrittenError) as error:
        raise type(error)(f"{error}\n{go_on(options, config)}") from error
    try:
        result = trainer.fit(stop)
    except BadStepError as error:
        raise type(error)(f"{error}\n{after_bad_step(options, config, error)}", error.bad_step) from error
    except (AccidentError, CheckpointError, DataError) as error:
        raise type(error)(f"{error}\n{go_on(options, config)}") from error
    except Exception:  # a bug; its traceback follows
        say(go_on(options, config))
        raise
    by = f" by {stop.reason}" if result == "stopped" else ""
    if world.is_first:
        print(f"{result}{by} after {trainer.step} of {config.training.steps} steps; run folder: {config.run}")
    options.made = config.run
    if result == "finished":
        return 0
    say(go_on(options, config))
    return AccidentError.exit_code


def _tell(config: Config, trainer: Trainer) -> None:
    """What is to be known of the data, before the first step."""
    loader, preprocess = trainer.loader, trainer.preprocess
    assert isinstance(loader, StepLoader)  # of `build_trainer`
    assert isinstance(preprocess, DevicePreprocess)
    sources = {name: stream.source for name, stream in loader.dataset.streams.items()}
    report_data(sources, trainer.folder.path)
    if trainer.store.latest() is None:
        for line in caption_warnings(config, sources, preprocess.text):
            say(f"warning: {line}")


def initial_weights(options: argparse.Namespace) -> Initial | None:
    """What --init-from, --init-drop and --init-fresh say. Raises ConfigError for patterns without a source."""
    if options.init_from is not None:
        return Initial(options.init_from, tuple(options.init_drop), tuple(options.init_fresh))
    if options.init_drop or options.init_fresh:
        raise ConfigError("--init-drop, --init-fresh: need --init-from RUN or FILE")
    return None
