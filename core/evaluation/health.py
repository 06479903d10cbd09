"""Signs of trouble in representation learning, as numbers.

The known failures: norms that grow (paper Fig. 11, l1 instead of cosine), an alignment that is near 1 early and then
flat, features that no longer differ between tokens or samples (oversmoothing, collapse), and a student that agrees with
the teacher only where both see the same noise level.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import DataError, ShapeError


@torch.no_grad()
def feature_health(
    layers: Mapping[str, Tensor],
    counted: Tensor,
    pair: tuple[Tensor, Tensor] | None = None,
    levels: tuple[Tensor, Tensor] | None = None,
) -> dict[str, float]:
    """Named numbers about features of one batch; means are over counted tokens.

    For every entry of `layers`:
        norm/NAME: mean length of a feature.
        effective_rank/NAME: see `effective_rank`, over all counted tokens; 1 is collapse, D the most.
        token_cosine/NAME: mean cosine of two different tokens of a sample; near 1 is oversmoothing. Left out where no
            sample has two tokens.
        mean_cosine/NAME: mean cosine of a token with the mean feature of the batch; near 1 is collapse.
    With `pair`:
        cosine: mean cosine of the student's prediction and the teacher's target.
    With `pair` and `levels`, the same for the tokens of one kind (left out where there are none):
        cosine_noisier: where the student's token is noisier than the teacher's.
        cosine_same: where both see the same level.
        share_noisier: share of the tokens of the first kind, between 0 and 1.

    Args:
        layers: name -> features (B, L, D).
        counted: (B, L) bool.
        pair: (projected student features, teacher features), each (B, L, D).
        levels: noise level of every token for (student, teacher), each (B, L).

    Raises:
        ShapeError: shapes that do not fit `counted`.
        DataError: no counted token, or levels without a pair.
    """
    _check(layers, counted, pair, levels)
    found: dict[str, float] = {}
    for name, features in layers.items():
        tokens = features[counted].float()  # (n, D)
        found[f"norm/{name}"] = _mean(tokens.norm(dim=1))
        found[f"effective_rank/{name}"] = effective_rank(tokens)
        if counted.sum(dim=1).max() > 1:
            found[f"token_cosine/{name}"] = _token_cosine(features.float(), counted)
        centre = tokens.double().mean(dim=0).float()
        found[f"mean_cosine/{name}"] = _mean(F.cosine_similarity(tokens, centre[None], dim=1))
    if pair is None:
        return found
    prediction, target = (side[counted].float() for side in pair)
    cosine = F.cosine_similarity(prediction, target, dim=1)  # (n,)
    found["cosine"] = _mean(cosine)
    if levels is not None:
        student, teacher = (side[counted] for side in levels)
        noisier = student > teacher
        found["share_noisier"] = _mean(noisier)
        for kind, chosen in (("noisier", noisier), ("same", student == teacher)):
            if chosen.any():
                found[f"cosine_{kind}"] = _mean(cosine[chosen])
    return found


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the singular values of (n, D), normalised to sum 1; between 1 and min(n, D).

    Roy and Vetterli (2007); as a sign of collapse Garrido et al. (2023, arXiv 2210.02885). Rows are not centred, as in
    both. Singular values come from the smaller Gram matrix in float64, which is exact to about 1e-8 of the largest. All
    rows being 0 gives 0.
    """
    rows = rows.double()
    gram = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram)
    # What lies below rounding of the Gram matrix is 0, or its root would be taken for a small singular value.
    floor = values.max() * max(gram.shape) * torch.finfo(torch.float64).eps
    singular = torch.where(values > floor, values, 0.0).sqrt()
    if not singular.sum() > 0:
        return 0.0
    share = singular / singular.sum()
    return float((-torch.xlogy(share, share).sum()).exp())


def _token_cosine(features: Tensor, counted: Tensor) -> float:
    """Mean over samples of the mean cosine of distinct pairs: (|sum u|^2 - sum |u|^2) / (n (n - 1)) of unit u."""
    unit = F.normalize(features, dim=-1).double() * counted[..., None]  # (B, L, D)
    count = counted.sum(dim=1)  # (B,)
    pairs = unit.sum(dim=1).square().sum(dim=1) - unit.square().sum(dim=(1, 2))
    several = count > 1
    return _mean(pairs[several] / (count * (count - 1))[several])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _check(layers, counted, pair, levels) -> None:
    if counted.ndim != 2 or counted.dtype != torch.bool:
        raise ShapeError(f"feature_health: counted: expected (B, L) bool, got {tuple(counted.shape)} {counted.dtype}")
    if not counted.any():
        raise DataError("feature_health: no counted token")
    if levels is not None and pair is None:
        raise DataError("feature_health: levels split the cosine of a pair; give the pair too")
    for name, features in [*layers.items(), *(("pair", side) for side in pair or ())]:
        if features.ndim != 3 or features.shape[:2] != counted.shape:
            raise ShapeError(f"feature_health: {name}: expected {(*counted.shape, 'D')}, got {tuple(features.shape)}")
    for side in levels or ():
        if side.shape != counted.shape:
            raise ShapeError(f"feature_health: levels: expected {tuple(counted.shape)}, got {tuple(side.shape)}")
