"""NCCL's flight recorder: the last exchanges of every GPU, written into the run folder when one of them times out.

`torchfrtrace` of PyTorch reads the files and names the rank that is missing. A variable that is set already is kept.
"""

from __future__ import annotations

import os
from pathlib import Path

EXCHANGES = 2000


def record_exchanges(folder: Path) -> None:
    """Before the process group is made: what it keeps, and where it goes, `folder/nccl-rank-N`."""
    prefix = str(folder / "nccl-rank-")
    for name, value in {
        "TORCH_FR_BUFFER_SIZE": str(EXCHANGES),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_FR_DUMP_TEMP_FILE": prefix,
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": prefix,  # its name before 2.9
    }.items():
        os.environ.setdefault(name, value)
