import torch

from core.trunk.rope import normed_rotation, rotate, rotation, sincos, split_axes


def random_ids(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, (2, tokens, 3), generator=torch.Generator().manual_seed(seed))


def complex_rotation(x: torch.Tensor, ids: torch.Tensor, axes: tuple[int, ...], theta: float) -> torch.Tensor:
    """The definition: pair (i, i + half) as a complex number, times e^(i angle)."""
    half = x.shape[-1] // 2
    angles = [
        ids[..., axis, None].double() * theta ** (-2 * torch.arange(n // 2).double() / n) for axis, n in enumerate(axes)
    ]
    turn = torch.polar(torch.tensor(1.0).double(), torch.cat(angles, -1))[:, :, None, None]
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def test_rotation_is_a_complex_product():
    x, ids, axes = torch.randn(2, 7, 2, 3, 16).double(), random_ids(7), (4, 6, 6)
    result = rotate(x, rotation(ids, axes, 2000.0, torch.float64))
    torch.testing.assert_close(result, complex_rotation(x, ids, axes, 2000.0), atol=1e-12, rtol=0)


def test_scores_depend_on_position_differences_only():
    qk, ids, axes = torch.randn(2, 9, 2, 1, 72).double(), random_ids(9), (24, 24, 24)

    def scores(positions):
        q, k = rotate(qk, rotation(positions, axes, 2000.0, torch.float64)).unbind(2)
        return torch.einsum("bqhd,bkhd->bqk", q, k)

    shifted = scores(ids + torch.tensor([5, -3, 11]))
    torch.testing.assert_close(shifted, scores(ids), atol=1e-10, rtol=0)
    # A shift of some tokens alone is seen, on every axis.
    for axis in range(3):
        moved = ids.clone()
        moved[:, 0, axis] += 1
        assert (scores(moved) - scores(ids)).abs().max() > 1e-2


def test_position_zero_is_not_turned():
    x = torch.randn(1, 4, 2, 2, 12)
    tables = rotation(torch.zeros(1, 4, 3, dtype=torch.long), (4, 4, 4), 2000.0, torch.float32)
    assert torch.equal(rotate(x, tables), x)


def test_angles_keep_float32_in_a_bfloat16_network():
    ids = torch.tensor([[[0, 0, 1000], [0, 0, 1001]]])
    cosine, sine = rotation(ids, (4, 4, 4), 2000.0, torch.bfloat16)
    assert cosine.dtype == sine.dtype == torch.float32
    expected = torch.cos(torch.tensor([1000.0, 1001.0]).double())
    torch.testing.assert_close(cosine[0, :, 0, 0, 4].double(), expected, atol=1e-4, rtol=0)


def test_even_split_of_the_head():
    for head_dim in range(6, 258, 2):
        axes = split_axes(head_dim)
        assert sum(axes) == head_dim
        assert axes[1] == axes[2]
        assert all(axis >= 2 and axis % 2 == 0 for axis in axes)
        assert max(axes) - min(axes) <= 2
    assert split_axes(72) == (24, 24, 24)


def test_absolute_positions_are_sines_and_cosines_of_each_axis():
    ids = torch.tensor([[[0, 1, 7], [2, -1, 3]]])
    table = sincos(ids, 14, theta=100.0)  # two pairs for each axis, two channels left over
    assert table.shape == (1, 2, 14)
    for token in range(2):
        for axis in range(3):
            position = ids[0, token, axis].item()
            angles = torch.tensor([position, position / 10.0]).double()
            expected = torch.cat([angles.sin(), angles.cos()])
            torch.testing.assert_close(table[0, token, 4 * axis : 4 * axis + 4].double(), expected, atol=1e-6, rtol=0)
    assert (table[..., 12:] == 0).all()


def test_normed_rotation_is_the_norm_and_then_the_rotation():
    """Values against the two in turn, gradients against finite differences, and the dtype of half precision."""
    draw = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 9, (2, 5, 3), generator=draw)
    tables = rotation(ids, (4, 2, 2), 2000.0, torch.float64)
    x = torch.randn(2, 5, 2, 3, 8, dtype=torch.float64, generator=draw, requires_grad=True)
    scale = (1 + 0.3 * torch.randn(16, dtype=torch.float64, generator=draw)).requires_grad_()
    normed = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * scale.view(2, 1, 8)
    turned = normed_rotation(x, scale, 1e-6, tables)
    torch.testing.assert_close(turned, rotate(normed, tables), atol=1e-14, rtol=0)
    assert torch.autograd.gradcheck(lambda x, scale: normed_rotation(x, scale, 1e-6, tables), (x, scale))
    half = normed_rotation(x.detach().bfloat16(), scale.float(), 1e-6, rotation(ids, (4, 2, 2), 2000.0, torch.bfloat16))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), turned, atol=0.03, rtol=0)
