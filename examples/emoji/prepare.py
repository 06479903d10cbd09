"""Noto Emoji with their names as one Parquet file, for configs/emoji.yaml and configs/studies/captions.yaml.

    git clone --depth 1 https://github.com/googlefonts/noto-emoji
    git clone --depth 1 https://github.com/muan/unicode-emoji-json
    python examples/emoji/prepare.py noto-emoji unicode-emoji-json data/emoji.parquet

Columns: image (PNG, 128 pixels, transparent), name, category, style ("noto"), and unseen ("True" where the name has a
held-out word). Every eighth word by its CRC-32 is held out, of those that at most five names have, so that whole kinds
of emoji do not vanish with a word like "face".
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MOST_NAMES, EVERY = 5, 8
VARIATION = "fe0f"  # asks for the picture instead of the text; not in the names of files


def words(name: str) -> list[str]:
    return re.findall(r"\w+", name.lower())


def held_out(names: list[str]) -> set[str]:
    counts = Counter(word for name in names for word in set(words(name)))
    return {word for word, count in counts.items() if count <= MOST_NAMES and zlib.crc32(word.encode()) % EVERY == 0}


def rows(noto: Path, names: Path) -> list[dict]:
    """One for each emoji of unicode-emoji-json that Noto has a picture of, in its order."""
    found = []
    for emoji, about in json.loads((names / "data-by-emoji.json").read_text(encoding="utf-8")).items():
        code = "_".join(point for point in (f"{ord(character):04x}" for character in emoji) if point != VARIATION)
        path = noto / "png" / "128" / f"emoji_u{code}.png"
        if path.is_file():
            found.append({"image": path.read_bytes(), "name": about["name"], "category": about["group"]})
    unseen = held_out([row["name"] for row in found])
    return [row | {"style": "noto", "unseen": str(bool(unseen & set(words(row["name"]))))} for row in found]


def main(noto: str, names: str, out: str) -> None:
    found = rows(Path(noto), Path(names))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(found), out, row_group_size=100)
    print(f"{len(found)} emoji in {out}, {sum(row['unseen'] == 'True' for row in found)} with a held-out word")


if __name__ == "__main__":
    main(*sys.argv[1:])
