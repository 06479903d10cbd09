"""Images from a trained run, such as that of `make demo`: tensors, and a PNG of each.

python docs/examples/generate.py RUN OUT [PROMPT ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import selfflow as sf


def main(run: str, out: str, *prompts: str) -> None:
    model = sf.from_pretrained(run)  # the EMA weights of the newest checkpoint
    prompts = prompts or ("a red circle", "a blue square")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(model.generate("image", prompts, seed=0, steps=20)):
        pixels = ((sample["image"] + 1) * 127.5).round().clamp(0, 255).byte()  # (3, H, W) in [-1, 1] -> 0..255
        path = folder / f"{number}.png"
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
