import torch

from core.trunk import rope
from tests.core.test_mmdit import B, dual_levels, trunk, two_segments


def test_absolute_positions_are_added_to_the_embedded_tokens():
    """Rotary positions alone see no difference between samples that are shifted as a whole; these do."""
    noisy, batch = two_segments()
    plain, absolute = trunk(), trunk(pos_embed=True)
    assert plain.state_dict().keys() == absolute.state_dict().keys()
    added = absolute._read_media(noisy, batch) - plain._read_media(noisy, batch)
    expected = [rope.sincos(segment.ids, 32).expand(B, -1, -1).double() for segment in batch.segments]
    torch.testing.assert_close(added, torch.cat(expected, dim=1), atol=1e-12, rtol=0)
    levels = dual_levels()
    assert (absolute(noisy, levels, batch).velocity[0] - plain(noisy, levels, batch).velocity[0]).abs().max() > 1e-3
