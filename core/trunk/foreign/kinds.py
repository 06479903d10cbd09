"""The kinds of weight files: what each holds, how it is recognized, and its conversion both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from core.errors import CheckpointError, choose
from core.trunk.ddt import DDT
from core.trunk.foreign import flux2, wan
from core.trunk.foreign.conversions import (
    HEAD,
    PATCH,
    TIME,
    State,
    flatten_patches,
    name_projectors,
    number_projectors,
    rename,
    turn_time,
    unflatten_patches,
)
from core.trunk.foreign.files import some
from core.trunk.mmdit import MMDiT
from core.trunk.sit import SiT
from core.trunk.wan import Wan

SIT = frozenset({"x_embedder", "t_embedder", "y_embedder", "pos_embed", "blocks", "final_layer"})
DDT_PARTS = frozenset(
    {"x_embedder", "s_embedder", "t_embedder", "y_embedder", "blocks", "final_layer", "enc_feat_rope", "dec_feat_rope"}
)
DDT_OPTIONAL = frozenset({"s_projector", "pos_embed"})
MMDIT = frozenset({"media_in", "media_out", "context", "time", "double_blocks", "single_blocks"}) | {
    f"{name}_modulation" for name in ("media", "text", "single", "final")
}
FLUX2_SHARED = frozenset({"double_stream_modulation_img", "double_stream_modulation_txt"})
FLUX2_AUTHORS = FLUX2_SHARED | {
    *("img_in", "txt_in", "time_in", "single_stream_modulation", "double_blocks", "single_blocks", "final_layer")
}
FLUX2_DIFFUSERS = FLUX2_SHARED | {
    *("x_embedder", "context_embedder", "time_guidance_embed", "single_stream_modulation", "transformer_blocks"),
    *("single_transformer_blocks", "norm_out", "proj_out"),
}
WAN_AUTHORS = frozenset({"patch_embedding", "text_embedding", "time_embedding", "time_projection", "blocks", "head"})
WAN_DIFFUSERS = frozenset({"patch_embedding", "condition_embedder", "blocks", "scale_shift_table", "proj_out"})
WAN = frozenset({"media_in", "media_out", "text", "null", "time", "time_rows", "blocks", "final_table"})
PROJECTORS = frozenset({"projector", "projectors"})
TURNED = (PATCH, TIME, f"{HEAD}.weight", f"{HEAD}.bias")  # what the conversion of REPA's conventions changes


def _same(state: State, names: Sequence[str]) -> State:
    return state


def _keep(state: State, names: Sequence[str], patch: int) -> State:
    return state


@dataclass(frozen=True)
class Kind:
    """
    Attributes:
        about: what writes such files.
        trunk: our class that holds its weights.
        parts: first words of the names that it has.
        optional: those that it may have.
        needs: whole names that it has as well.
        patches: dimensions of its patch embedding's weight.
        plain_head: the head has no second half of outputs (learn_sigma).
        arguments: training arguments, where the file tells them, with the one value that can be taken over.
        decode: (its state dict, names of our numbered projectors) -> ours.
        encode: (our state dict, those names, patch) -> its.
        wrapper: the name that its state dict lies under in a `.pt` file.
        by_head: decode and encode are also given the channels of a head, which no shape shows.
        absent: what our trunk holds and no file of this kind does.
    """

    about: str
    trunk: type[nn.Module]
    parts: frozenset[str]
    optional: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    patches: int = 4
    plain_head: bool = False
    arguments: Mapping[str, object] = field(default_factory=dict)
    decode: Callable[..., State] = _same
    encode: Callable[..., State] = _keep
    wrapper: str | None = None
    by_head: bool = False
    absent: tuple[str, ...] = ()

    def read(self, state: State, names: Sequence[str], trunk: nn.Module) -> State:
        """A state dict of this kind under our names, for a trunk of that shape."""
        return self.decode(state, names, *self._head(trunk))

    def write(self, state: State, names: Sequence[str], trunk: nn.Module) -> State:
        """Weights of a trunk under the names of this kind."""
        patch = trunk.config.patch if isinstance(trunk, SiT) else 1
        return self.encode(state, names, patch, *self._head(trunk))

    def _head(self, trunk: nn.Module) -> tuple[int, ...]:
        return (trunk.width // trunk.heads,) if self.by_head and isinstance(trunk, Wan) else ()

    def misfits(self, state: Mapping[str, Tensor]) -> list[str]:
        """Why `state` is not of this kind; empty when it is."""
        parts = dict.fromkeys(name.split(".")[0] for name in state)
        found = [f"{part} is missing" for part in sorted(self.parts) if part not in parts]
        found += [f"{name} is missing" for name in self.needs if name.split(".")[0] in parts and name not in state]
        found += [f"{part} does not belong" for part in parts if part not in self.parts | self.optional]
        if PATCH in state and state[PATCH].ndim != self.patches:
            shape = tuple(state[PATCH].shape)
            found.append(f"{PATCH} {shape} must have {self.patches} dimensions")
        elif self.plain_head and PATCH in state and f"{HEAD}.bias" in state:
            rows, channels = state[f"{HEAD}.bias"].shape[0], state[PATCH][0].numel()
            if rows != channels:
                found.append(f"{HEAD}.bias ({rows},) must be ({channels},), a head without learn_sigma")
        return found


KINDS: dict[str, Kind] = {
    "selfflow": Kind(
        "Self-Flow (black-forest-labs/Self-Flow), the released ImageNet weights",
        SiT,
        SIT | {"projector"},
        needs=("projector.linear1.weight",),
        patches=2,
    ),
    "sit": Kind(
        "SiT (willisma/SiT): time 1 is data, it predicts data minus noise",
        SiT,
        SIT,
        needs=(PATCH,),
        arguments={"path_type": "Linear", "prediction": "velocity"},
        decode=lambda state, names: flatten_patches(state),
        encode=lambda state, names, patch: unflatten_patches(state, patch),
        wrapper="ema",
    ),
    "repa": Kind(
        "REPA (sihyun-yu/REPA): time 1 is noise, it predicts noise minus data",
        SiT,
        SIT | {"projectors"},
        needs=(*TURNED, "projectors.0.4.weight"),
        plain_head=True,
        arguments={"path_type": "linear", "prediction": "v"},
        decode=lambda state, names: turn_time(flatten_patches(name_projectors(state, names))),
        encode=lambda state, names, patch: number_projectors(turn_time(unflatten_patches(state, patch)), names),
        wrapper="ema",
    ),
    "sra": Kind(
        "SRA (vvvvvjdy/SRA, its SiT folders): REPA's conventions, one head for its own features",
        SiT,
        SIT,
        optional=frozenset({"ap_head"}),
        needs=TURNED,
        plain_head=True,
        arguments={"path_type": "linear", "prediction": "v"},
        decode=lambda state, names: rename(turn_time(flatten_patches(state)), {"ap_head.": "projector."}),
        encode=lambda state, names, patch: rename(
            turn_time(unflatten_patches(state, patch)), {"projector.": "ap_head."}
        ),
        wrapper="ema",
    ),
    "rae": Kind(
        "RAE stage 2 (bytetriper/RAE, DiTwDDTHead)",
        DDT,
        DDT_PARTS,
        optional=DDT_OPTIONAL,
        wrapper="ema",
    ),
    "flux2": Kind(
        "FLUX.2 (black-forest-labs/flux2), the authors' file of the transformer",
        MMDiT,
        FLUX2_AUTHORS,
        optional=frozenset({"guidance_in"}),
        decode=lambda state, names: flux2.from_authors(state),
        encode=lambda state, names, patch: flux2.to_authors(state),
        absent=(flux2.NULL,),
    ),
    "flux2-diffusers": Kind(
        "FLUX.2 as diffusers stores its transformer",
        MMDiT,
        FLUX2_DIFFUSERS,
        decode=lambda state, names: flux2.from_diffusers(state),
        encode=lambda state, names, patch: flux2.to_diffusers(state),
        absent=(flux2.NULL,),
    ),
    "wan": Kind(
        "Wan 2.2 TI2V (Wan-Video/Wan2.2), the authors' file of the transformer",
        Wan,
        WAN_AUTHORS,
        decode=lambda state, names, head=wan.HEAD_DIM: wan.from_authors(state, head),
        encode=lambda state, names, patch, head: wan.to_authors(state, head),
        by_head=True,
        absent=(wan.NULL,),
    ),
    "wan-diffusers": Kind(
        "Wan 2.2 TI2V as diffusers stores its transformer",
        Wan,
        WAN_DIFFUSERS,
        decode=lambda state, names, head=wan.HEAD_DIM: wan.from_diffusers(state, head),
        encode=lambda state, names, patch, head: wan.to_diffusers(state, head),
        by_head=True,
        absent=(wan.NULL,),
    ),
    "native-sit": Kind("this project's own names, trunk.kind sit", SiT, SIT, optional=PROJECTORS, patches=2),
    "native-ddt": Kind("this project's own names, trunk.kind ddt", DDT, DDT_PARTS, optional=DDT_OPTIONAL | PROJECTORS),
    "native-mmdit": Kind(
        "this project's own names, trunk.kind mmdit or flux2", MMDiT, MMDIT, optional=PROJECTORS | {"guidance"}
    ),
    "native-wan": Kind("this project's own names, trunk.kind wan", Wan, WAN, optional=PROJECTORS),
}


def detect(state: Mapping[str, Tensor], source: str) -> str:
    """The kind of a state dict, by its names and shapes.

    Raises:
        CheckpointError: none fits, with what each of them lacks, the nearest first; or several do.
    """
    misfits = {name: kind.misfits(state) for name, kind in KINDS.items()}
    fitting = [name for name, found in misfits.items() if not found]
    # Where another project's names are ours, a file of ours may be one of its; there is nothing to convert.
    fitting = [name for name in fitting if not name.startswith("native-")] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        lines = [f"  {name}: {KINDS[name].about}" for name in fitting]
        raise CheckpointError("\n".join([f"{source} could be of several kinds; say which one (kind):", *lines]))
    ranked = sorted(misfits, key=lambda name: len(misfits[name]))
    lines = [f"  {name}: {some(misfits[name])}" for name in ranked]
    raise CheckpointError(
        "\n".join(
            [f"{source} is of no known kind; it holds {some(list(state))}. Tried, the nearest kind first:", *lines]
        )
    )


def check_kind(name: str, state: Mapping[str, Tensor], source: str) -> Kind:
    """The kind of that name. Raises ConfigError for an unknown name, CheckpointError if `state` is of another kind."""
    kind = choose("kind", name, KINDS)
    if found := kind.misfits(state):
        fitting = [other for other in KINDS if not KINDS[other].misfits(state)]
        hint = f"; it is of kind {' or '.join(fitting)}" if fitting else ""
        raise CheckpointError(f"{source} is not of kind {name!r}: {some(found)}{hint}")
    return kind


def check_arguments(kind: Kind, arguments: Mapping[str, object], source: str) -> None:
    """Refuse weights that were trained for another path or another prediction than ours."""
    for name, wanted in kind.arguments.items():
        if name in arguments and arguments[name] != wanted:
            raise CheckpointError(
                f"{source} was trained with {name} {arguments[name]!r}; only {wanted!r} is the velocity of this code"
            )
