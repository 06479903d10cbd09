"""python -m tools.audiovisual RUN: how often a run's videos and audio clips agree, from files that are read back.

Writes RUN/audiovisual/step-N/: the MP4s of three modes, a contact sheet of each, and scores.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from configs.runs import load_run
from core.errors import SelfFlowError
from core.progress import ProgressBar
from modalities.generation import sampler_steps
from modalities.synthetic.audiovisual_score import MODES, score


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.audiovisual", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder, of configs/audiovisual.yaml or one like it")
    parser.add_argument("--stream", default="audiovisual")
    parser.add_argument("--number", type=int, default=96, help="held-out samples of each mode (default 96)")
    parser.add_argument("--step", type=int, help="checkpoint; the newest intact one unless set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cfg-scale", type=float, help="default: the run's")
    parser.add_argument("--steps", type=int, help="of the sampler; default: the run's")
    parser.add_argument("--out", type=Path, help="default RUN/audiovisual/step-N")
    options = parser.parse_args(arguments)
    try:
        return report(options)
    except SelfFlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def report(options: argparse.Namespace) -> int:
    loaded = load_run(options.run, options.step)
    settings = loaded.config.streams[options.stream].sampling
    settings.steps = options.steps or settings.steps
    settings.cfg_scale = settings.cfg_scale if options.cfg_scale is None else options.cfg_scale
    out = options.out or options.run / "audiovisual" / f"step-{loaded.step}"
    steps = sampler_steps(loaded.generator.parts[options.stream], settings)
    with ProgressBar(total=options.number * steps * len(MODES), unit="step") as bar:
        found = score(
            loaded.generator, options.stream, settings, out, options.number, options.seed, progress=bar.update
        )
    for mode, rows in found.items():
        line = ", ".join(f"{name} {row['right']:.2f} (chance {row['chance']:.2f})" for name, row in rows.items())
        print(f"{mode}: {line}")
    about = {"step": loaded.step, "number": options.number, "seed": options.seed, "scores": found}
    (out / "scores.json").write_text(json.dumps(about, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
