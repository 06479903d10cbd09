"""Weights of other projects in and out: strict, and byte-identical on the way back."""

from core.trunk.foreign.files import WeightFile, read_file, read_state_dict, write_file
from core.trunk.foreign.folders import is_folder, load_folder, read_folder
from core.trunk.foreign.kinds import KINDS, detect
from core.trunk.foreign.sit import infer_projectors, infer_sit_config, load_sit
from core.trunk.foreign.strict import load_strictly
from core.trunk.foreign.transfer import export_weights, holds_meaning, import_weights

__all__ = [
    "KINDS",
    "WeightFile",
    "detect",
    "export_weights",
    "holds_meaning",
    "import_weights",
    "infer_projectors",
    "infer_sit_config",
    "is_folder",
    "load_folder",
    "load_sit",
    "load_strictly",
    "read_file",
    "read_folder",
    "read_state_dict",
    "write_file",
]
