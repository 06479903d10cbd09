"""selfflow demo: pretrain the quickstart model, generate images, videos and audio, and read them back."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import configs
from configs.build import build_trainer
from configs.load import load_config
from configs.runs import load_run
from core.errors import ConfigError, SelfFlowError
from core.training.say import say
from modalities.media.audio import probe_audio, read_audio
from modalities.media.images import read_image
from modalities.media.video import index_video, read_frames
from modalities.synthetic.check import accuracy, check
from tools.generate.generate import generate_files
from tools.report.folders import look
from tools.report.report import write_report

PROMPTS = {
    "image": [
        *("a red circle", "a green square", "a blue triangle", "a yellow cross"),
        *("a cyan square", "a magenta circle", "a red triangle", "a blue cross"),
    ],
    "video": [
        *("a red circle moving left", "a green cross moving right"),
        *("a blue circle moving up", "a yellow cross moving down"),
    ],
    "audio": ["notes C E G", "notes G E C", "notes A F D", "notes D D A"],
}
SEED = 1
EXAMPLES = """examples:
  selfflow demo run=runs/quickstart
  selfflow demo run=runs/quick training.steps=300           a rougher model in a quarter of the time
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="train the quickstart model and look at what it makes",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over quickstart.yaml")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    config = load_config(Path(configs.__file__).parent / "quickstart.yaml", options.overrides)
    if not config.run:
        raise ConfigError("run: names the folder of the run; add run=FOLDER")
    if build_trainer(config).fit() != "finished":
        print("stopped; the same command continues")
        return 0

    loaded, folder = load_run(Path(config.run)), Path(config.run) / "generated"
    lines = []
    for modality, stream in config.streams.items():
        prompts = PROMPTS[modality]
        files = generate_files(loaded, modality, prompts, stream.sampling, SEED, folder / modality)
        right = accuracy(check_file(modality, *pair) for pair in zip(files, prompts, strict=True))
        lines.append(f"  {modality}: " + ", ".join(f"{name} {share:.0%}" for name, share in right.items()))
    print(f"what the files hold, measured from the files themselves, against their prompts (seed {SEED}):")
    print("\n".join(lines))
    try:
        print(f"report, to open in a browser: {write_report(look([folder.parent]), folder.parent / 'report.html')}")
    except SelfFlowError as error:  # without the extra `report`, all that the demo makes is there
        say(f"no report: {error}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; look at {folder}")
    options.made = folder.parent
    return 0


def check_file(modality: str, path: Path, prompt: str) -> dict[str, bool]:
    """Read a written file as anyone would, and compare what it holds with its prompt."""
    if modality == "image":
        return check("image", read_image(path, str(path)), prompt)
    if modality == "video":
        index = index_video(path, str(path))
        return check("video", np.stack(read_frames(path, str(path), index, np.arange(len(index.pts)))), prompt)
    info = probe_audio(path, str(path))
    return check("audio", read_audio(path, str(path), 0, info.samples), prompt, info.rate)
