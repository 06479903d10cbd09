"""NCCL's flight recorder: the last exchanges of every GPU, written into the run folder when one of them times out.

`torchfrtrace` of PyTorch reads the files and names the rank that is missing. A variable that is set already is kept.
"""

from __future__ import annotations

import os
from pathlib import Path

EXCHANGES = 2000


def record_exchanges() -> None:
    """To be called before the process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(EXCHANGES))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def write_exchanges_to(folder: Path) -> None:
    """Files are `folder/nccl-rank-N`; to be called before the first timeout."""
    for name in ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):  # the second is its older name
        os.environ.setdefault(name, str(folder / "nccl-rank-"))
