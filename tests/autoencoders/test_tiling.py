from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from autoencoders.base import media_size
from autoencoders.tiling import Cut, tiled
from tests.autoencoders.memory import Alive
from tests.autoencoders.originals import FILES, narrow, write
from tests.autoencoders.recipe import uniform
from tests.autoencoders.small import pretrained, save

CUTS = [(20, 8, 4), (9, 8, 4), (64, 16, 7), (100, 40, 16), (33, 32, 16), (17, 9, 1)]


@pytest.mark.parametrize(("cells", "tile", "overlap"), CUTS)
@pytest.mark.parametrize("unit", [1, 5])
def test_tiles_cover_the_axis_and_their_weights_are_one_everywhere(cells, tile, overlap, unit):
    cut = Cut(cells, tile, overlap, (2, 1), (2, unit))
    starts, weights = cut.starts(), cut.weights()
    assert starts[0] == 0
    assert starts[-1] + tile == cells
    assert all(0 < later - first <= tile - overlap for first, later in pairwise(starts))
    total = torch.zeros(cells * unit)
    for start, weight in zip(starts, weights, strict=True):
        total[start * unit : (start + tile) * unit] += weight
    torch.testing.assert_close(total, torch.ones(cells * unit))


def test_a_quarter_of_the_overlap_is_thrown_away_and_a_half_is_a_ramp():
    first, last = Cut(24, 16, 8, (1, 1), (1, 2)).weights()
    ramp = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(first, torch.cat([torch.ones(20), ramp.flip(0), torch.zeros(4)]))
    torch.testing.assert_close(last, first.flip(0))


def stack(x: torch.Tensor) -> torch.Tensor:
    """(1, 1, 2 h, 2 w) -> (1, 1, h, w): a result depends on 2 cells at each side."""
    kernel = uniform("kernel", (1, 1, 3, 3))
    for stride in (1, 2, 1):
        x = functional.conv2d(functional.pad(x, (1, 1, 1, 1)), kernel, stride=stride).tanh()
    return x


def unstack(x: torch.Tensor) -> torch.Tensor:
    """(1, 1, h, w) -> (1, 1, 2 h, 2 w), depending on 2 cells at each side."""
    return functional.interpolate(functional.conv2d(stack_same(x), uniform("other", (1, 1, 3, 3)), padding=1), None, 2)


def stack_same(x: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(x, uniform("kernel", (1, 1, 3, 3)), padding=1).tanh()


def test_tiles_equal_the_whole_where_the_reach_is_a_quarter_of_the_overlap():
    image, maps = uniform("picture", (1, 1, 60, 92)), uniform("maps", (1, 1, 30, 46))
    encode = [Cut(cells, 16, 8, (dim, 2), (dim, 1)) for dim, cells in ((2, 30), (3, 46))]
    decode = [Cut(cells, 16, 8, (dim, 1), (dim, 2)) for dim, cells in ((2, 30), (3, 46))]
    torch.testing.assert_close(tiled(stack, image, encode), stack(image), rtol=0, atol=1e-6)
    torch.testing.assert_close(tiled(unstack, maps, decode), unstack(maps), rtol=0, atol=1e-6)
    short = [replace(cut, overlap=2) for cut in encode]
    assert (tiled(stack, image, short) - stack(image)).abs().max() > 1e-2


def test_the_axis_of_audio_is_cut_likewise():
    kernel = uniform("kernel", (2, 2, 9))

    def encode(audio: torch.Tensor) -> torch.Tensor:  # (B, 2, 8 n) -> (B, 2, n, 1, 1)
        return functional.conv1d(functional.pad(audio, (4, 4)), kernel)[..., ::8, None, None]

    audio = uniform("sound", (3, 2, 400))
    whole = encode(audio)
    torch.testing.assert_close(tiled(encode, audio, [Cut(50, 12, 4, (2, 8), (2, 1))]), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(tiled(encode, audio, [Cut(50, 12, 4, (-1, 8), (-3, 1))]), whole, rtol=0, atol=1e-6)


def test_every_tile_has_the_same_size_and_nothing_is_cut_without_cuts():
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return x

    x = uniform("x", (1, 2, 30, 50))
    result = tiled(look, x, [Cut(15, 6, 2, (2, 2), (2, 2)), Cut(50, 20, 4, (3, 1), (3, 1))])
    torch.testing.assert_close(result, x)
    assert set(seen) == {(1, 2, 12, 20)}
    assert len(seen) == 4 * 3
    assert tiled(look, x, []) is x


# --- of the autoencoders


def image(kind: str, height: int, width: int, frames: int = 1) -> torch.Tensor:
    """Patches of color with some grain."""
    shape = (1, 3 * frames, height, width)
    grain = uniform("picture", shape)
    color = functional.interpolate(grain[..., ::16, ::16], size=(height, width), mode="bicubic")
    media = (0.7 * color + 0.3 * grain).clamp(-1, 1)
    return media.reshape(1, frames, 3, height, width) if kind == "wan22" else media[:, :3]


@pytest.fixture(scope="module", params=FILES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def file(kind, tmp_path_factory):
    return write(narrow(kind), tmp_path_factory.mktemp(kind) / FILES[kind])


def test_wan_without_attention_is_exact_where_the_overlap_is_wide_enough(tmp_path):
    """Its norms act on each place alone, so that only the attention of its middle sees the whole frame."""
    save("wan22", tmp_path)
    media = image("wan22", 16, 1280)
    whole, cut = pretrained("wan22", tmp_path), pretrained("wan22", tmp_path, tile=1088)
    for autoencoder in (whole, cut):
        for side in (autoencoder.load().encoder, autoencoder.load().decoder):
            side.mid_block.attentions[0].proj.requires_grad_(False).weight.zero_()
    latents, size = whole.encode(media), media_size(media)
    cut.overlap = 60  # the reach of this network is 15 cells at each side
    torch.testing.assert_close(cut.encode(media), latents, rtol=0, atol=2e-6)
    torch.testing.assert_close(cut.decode(latents, size), whole.decode(latents, size), rtol=0, atol=2e-6)


def seam(difference: torch.Tensor, places: list[int]) -> float:
    """How much more a difference from the whole jumps between neighboring columns at `places` than elsewhere."""
    jumps = difference.diff(dim=-1).square().flatten(0, -2).mean(dim=0).sqrt()
    at = torch.zeros(len(jumps), dtype=torch.bool)
    at[[place - 1 for place in places]] = True
    return float(jumps[at].mean() / jumps[~at].mean())


def test_tiles_are_near_the_whole_and_leave_no_seams(kind, file):
    media = image(kind, 32, 1024)
    size, borders = media_size(media), [256, 512, 768]  # where a tile begins or ends
    whole, cut = pretrained(kind, file), pretrained(kind, file, tile=512)
    latents = whole.encode(media)
    decoded = whole.decode(latents, size)
    difference = cut.encode(media) - latents
    assert 0 < difference.std() < 0.25 * latents.std()
    difference = cut.decode(latents, size) - decoded
    assert 0 < difference.std() < 0.5 * decoded.std()
    assert seam(difference, borders) < 1.3
    # As a control: the halves decoded by themselves.
    grid = whole.grid(size)
    halves = latents.unflatten(1, grid).chunk(2, dim=3)
    half = (1, 32, 512)
    apart = torch.cat([whole.decode(part.flatten(1, 3), half) for part in halves], dim=-1)
    assert seam(apart - decoded, [512]) > 1.6


def test_media_no_longer_than_a_tile_are_whole(kind, file):
    media = image(kind, 16, 512)
    size, whole, cut = media_size(media), pretrained(kind, file), pretrained(kind, file, tile=512)
    latents = whole.encode(media)
    assert torch.equal(cut.encode(media), latents)
    assert torch.equal(cut.decode(latents, size), whole.decode(latents, size))


def test_a_tile_bounds_the_memory(kind, file):
    media = image(kind, 16, 2048)
    size = media_size(media)

    def peaks(**settings) -> list[int]:
        autoencoder = pretrained(kind, file, **settings)
        autoencoder.load()
        with Alive() as encoding:
            latents = autoencoder.encode(media)
        with Alive() as decoding:
            autoencoder.decode(latents, size)
        return [encoding.peak, decoding.peak]

    for cut, whole in zip(peaks(tile=512), peaks(), strict=True):
        assert cut < 0.4 * whole


def test_the_memory_of_a_long_video_is_that_of_its_pixels(tmp_path):
    """The network works on four frames at a time whatever the length, and keeps what is causally needed."""
    file = write(narrow("wan22"), tmp_path / FILES["wan22"])
    autoencoder, peaks = pretrained("wan22", file), []
    autoencoder.load()
    for frames in (9, 29):
        media = image("wan22", 16, 32, frames)
        with Alive() as encoding:
            latents = autoencoder.encode(media)
        with Alive() as decoding:
            autoencoder.decode(latents, media_size(media))
        peaks.append((encoding.peak, decoding.peak, media.nbytes))
    short, long = peaks
    pixels = long[2] - short[2]
    assert long[0] - short[0] < 3 * pixels
    assert long[1] - short[1] < 3 * pixels
