"""The published Self-Flow weights in and out: strict, and byte-identical on the way back."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.errors import CheckpointError
from core.trunk.sit import SIZES, SiT, SiTConfig

WRAPPERS = ("ema", "ema_model", "model", "state_dict")  # in order of preference: the EMA is what is evaluated
_SHOWN = 5


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pt`/`.pth`/`.ckpt` file (read without running any code in it).

    A state dict inside one of `WRAPPERS`, and names that start with "module.", are unwrapped.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error
    elif path.suffix in (".pt", ".pth", ".ckpt"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path}: damaged, or holds more than plain tensors ({reason})") from error
    else:
        raise CheckpointError(f"{path}: unknown kind {path.suffix!r}; allowed are .safetensors, .pt, .pth, .ckpt")
    return _unwrap(state, str(path))


def _unwrap(state: object, source: str) -> dict[str, Tensor]:
    if isinstance(state, dict):
        wrapper = next((name for name in WRAPPERS if isinstance(state.get(name), dict)), None)
        if wrapper is not None:
            return _unwrap(state[wrapper], f"{source}[{wrapper}]")
        if state and all(isinstance(value, Tensor) for value in state.values()):
            return {name.removeprefix("module."): value for name, value in state.items()}
    found = f"a dict with {list(state)[:_SHOWN]}" if isinstance(state, dict) else type(state).__name__
    raise CheckpointError(f"{source}: no tensors by name here or under {', '.join(WRAPPERS)}; found {found}")


def infer_sit_config(state: dict[str, Tensor], heads: int | None = None, patch: int = 2) -> SiTConfig:
    """The configuration whose model has the shapes of `state`.

    Args:
        heads: not visible in any shape; by default that of the published size of the same width, or heads of 64
            channels.
        patch: not visible either; 2 in all published models.

    Raises:
        CheckpointError: `state` is no SiT.
    """
    needed = {
        "x_embedder.proj.weight": 2,
        "pos_embed": 3,
        "y_embedder.embedding_table.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
        "final_layer.linear.weight": 2,
    }
    wrong = [f"{name} (missing)" for name in needed if name not in state]
    wrong += [f"{n} {tuple(state[n].shape)}" for n, dims in needed.items() if n in state and state[n].ndim != dims]
    if wrong:
        raise CheckpointError(f"not a SiT state dict: {', '.join(wrong)}; it holds {_some(list(state))}")
    width, channels = state["x_embedder.proj.weight"].shape
    numbers = [name.split(".")[1] for name in state if name.startswith("blocks.")]
    depth = 1 + max(int(number) for number in numbers if number.isdigit())
    names = {size.width: name for name, size in SIZES.items() if (size.width, size.depth) == (width, depth)}
    widths = {size.width: size.heads for size in SIZES.values()}
    return SiTConfig(
        size=names.get(width, "XL"),
        width=width,
        depth=depth,
        heads=heads or widths.get(width) or max(1, width // 64),
        grid=round(state["pos_embed"].shape[1] ** 0.5),
        channels=channels,
        patch=patch,
        num_classes=state["y_embedder.embedding_table.weight"].shape[0],
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        learn_sigma=state["final_layer.linear.weight"].shape[0] == 2 * channels,
        projector=any(name.startswith("projector.") for name in state),
    )


def load_strictly(trunk: SiT, state: dict[str, Tensor], source: str) -> None:
    """Copy `state` into `trunk`; every name and shape has to agree, and the dtype has to be that of the trunk.

    Raises:
        CheckpointError: with the first few of the missing, unexpected and mis-shaped names. Nothing was copied.
    """
    own = trunk.state_dict()
    misfit = [
        f"{name} {tuple(value.shape)} {value.dtype}, expected {tuple(own[name].shape)} {own[name].dtype}"
        for name, value in state.items()
        if name in own and (value.shape != own[name].shape or value.dtype != own[name].dtype)
    ]
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "mis-shaped": misfit,
    }
    if any(problems.values()):
        lines = [f"  {len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names]
        raise CheckpointError("\n".join([f"{source} does not fit this trunk:", *lines]))
    trunk.load_state_dict(state, strict=True)


def load_sit(path: Path | str, heads: int | None = None, patch: int = 2) -> SiT:
    """The model of a published (or exported) file, of the size that its shapes tell; see `infer_sit_config`."""
    state = read_state_dict(path)
    config = infer_sit_config(state, heads, patch)
    if problems := config.problems():
        raise CheckpointError(f"{path}: its shapes give no usable trunk: {'; '.join(problems)}")
    with torch.device("meta"):
        trunk = SiT(config)
    trunk = trunk.to(state["pos_embed"].dtype).to_empty(device="cpu")
    load_strictly(trunk, state, str(path))
    return trunk


def export_sit(trunk: SiT, path: Path | str) -> None:
    """Write the state dict under the published names, as `.safetensors`, or as `.pt` with a plain state dict."""
    path = Path(path)
    state = {name: value.detach().cpu().contiguous() for name, value in trunk.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".pt":
        torch.save(state, path)
    else:
        raise CheckpointError(f"{path}: unknown kind {path.suffix!r}; allowed are .safetensors and .pt")


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
