"""How far timesteps are shifted toward noise, by the number of a sample's tokens.

A sample with more tokens shows through more noise, so that sizes which train or sample together need shifts of their
own. The shift is alpha of core/flow.py's map; FLUX writes it as exp(mu).
"""

from __future__ import annotations

import math

FIXED = "fixed"


def sd3_shift(shift: float, at_tokens: int, tokens: int) -> float:
    """`shift` holds for `at_tokens` tokens and grows with the square root of their number (Stable Diffusion 3, arXiv
    2403.03206, eq. 23; there 3 at 1024 x 1024)."""
    return shift * math.sqrt(tokens / at_tokens)


def flux_shift(tokens: int) -> float:
    """exp(mu) with mu linear in the tokens, 0.5 at 256 and 1.15 at 4096: FLUX.1's sampling (black-forest-labs/flux,
    sampling.py), and the training of FLUX.1 and FLUX.2."""
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def flux2_shift(tokens: int, steps: int) -> float:
    """exp(mu) of FLUX.2's sampling, where mu also depends on the number of steps (black-forest-labs/flux2, sampling.py,
    compute_empirical_mu): between two lines, of 10 and of 200 steps, below 4300 tokens, the second line above."""
    mu_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return math.exp(mu_200)
    mu_10 = 8.73809524e-05 * tokens + 1.89833333
    return math.exp(mu_200 + (mu_10 - mu_200) * (200 - steps) / 190)


def shift_problems(rule: str, rules: tuple[str, ...], shift: float, at_tokens: int) -> list[str]:
    """Problems of the settings shift_rule, shift and shift_tokens, but for the range of the shift itself."""
    found = []
    if rule not in rules:
        found.append(f"shift_rule: {rule!r} is not one of {', '.join(rules)}")
    elif rule not in (FIXED, "sd3") and shift != 1:
        found.append(f"shift: {shift} is not read with shift_rule {rule!r}, which says it itself; leave it at 1")
    if at_tokens < 1:
        found.append(f"shift_tokens: {at_tokens} must be at least 1")
    return found
