"""The method table: what `method=NAME` stands for. A setting written in the YAML or on the command line wins."""

from __future__ import annotations

from core.errors import choose

METHODS: dict[str, dict] = {
    # Eq. 1-2: one time per sample, nothing aligned, no teacher pass.
    "flow_matching": {
        "noising": {"kind": "homogeneous"},
        "alignment": {"kind": "none"},
    },
    # Eq. 4-7: two times per sample, Bernoulli mask, EMA teacher at min(t, s), gamma 0.8, layers 0.3 D and 0.7 D.
    "self_flow": {
        "noising": {"kind": "dual", "mask": "bernoulli"},
        "alignment": {"kind": "ema_teacher", "weight": 0.8, "similarity": "cosine"},
    },
}


def method_settings(user: dict) -> dict:
    """The settings under the user's own ones, for the method that the user names (self_flow by default)."""
    return choose("method", user.get("method", "self_flow"), METHODS)
