"""Record the golden values of an autoencoder with its authors' code, which is not part of this repository:

    python -m tests.autoencoders.golden.record flux2 CHECKOUT   black-forest-labs/flux2
    python -m tests.autoencoders.golden.record wan22 CHECKOUT   Wan-Video/Wan2.2
    python -m tests.autoencoders.golden.record sd_vae CHECKOUT  CompVis/stable-diffusion
    python -m tests.autoencoders.golden.record songbloom CHECKOUT   tencent-ailab/SongBloom

CHECKOUT is a clone. Written are KIND.json (names and shapes of the tensors: of the published network, and of a narrow
one; the commit) and KIND.safetensors, what the narrow one does with the weights of `tests/autoencoders/recipe.py` in
float64: `normalized` latents and the deviation `std` of the posterior of the input `media`, and `decoded` from the
normalized latents `white`, both as maps.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from tests.autoencoders.recipe import uniform, weights
from tests.autoencoders.songbloom_files import settings

HERE = Path(__file__).parent


def _module(file: Path):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def _flux2(checkout: Path):
    code = _module(checkout / "src/flux2/autoencoder.py")

    def run(network: nn.Module) -> dict[str, Tensor]:
        media, white = uniform("media", (1, 3, 48, 32)).double(), uniform("white", (1, 128, 3, 2)).double()
        std = (network.encoder(media).chunk(2, dim=1)[1] / 2).exp()
        std = rearrange(std, "... c (i pi) (j pj)  -> ... (c pi pj) i j", pi=2, pj=2)
        return {"normalized": network.encode(media), "std": std, "decoded": network.decode(white)}

    narrow = code.AutoEncoderParams(ch=32, ch_mult=[1, 1, 2, 2], num_res_blocks=1)
    return lambda: code.AutoEncoder(code.AutoEncoderParams()), lambda: code.AutoEncoder(narrow), run


def _wan22(checkout: Path):
    code = _module(checkout / "wan/modules/vae2_2.py")
    # The constants lie in the constructor of a class that reads a file of the published size.
    code._video_vae = lambda **settings: nn.Identity()
    scale = code.Wan2_2_VAE(device="cpu", dtype=torch.float64).scale

    def network(dim: int, dec_dim: int) -> nn.Module:
        return code.WanVAE_(dim, dec_dim, 48, [1, 2, 4, 4], 2, [], [False, True, True])

    def run(network: nn.Module) -> dict[str, Tensor]:
        media, white = uniform("media", (1, 3, 9, 32, 16)).double(), uniform("white", (1, 48, 3, 2, 1)).double()
        moments = []
        network.conv1.register_forward_hook(lambda module, given, result: moments.append(result))
        return {
            "normalized": network.encode(media, scale),
            "std": (moments[0].chunk(2, dim=1)[1] / 2).exp(),
            "decoded": network.decode(white, scale).clamp(-1, 1),  # as Wan2_2_VAE.decode
        }

    return lambda: network(160, 256), lambda: network(4, 8), run


def _sd_vae(checkout: Path):
    sys.path.insert(0, str(checkout))
    from ldm.modules.diffusionmodules.model import Decoder, Encoder
    from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

    class AutoencoderKL(nn.Module):
        """ldm/models/autoencoder.py without its training."""

        def __init__(self, **settings):
            super().__init__()
            settings |= dict(double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, attn_resolutions=[])
            self.encoder, self.decoder = Encoder(**settings), Decoder(**settings)
            self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def run(network: nn.Module) -> dict[str, Tensor]:
        media, white = uniform("media", (1, 3, 48, 32)).double(), uniform("white", (1, 4, 6, 4)).double()
        posterior = DiagonalGaussianDistribution(network.quant_conv(network.encoder(media)))
        return {
            "normalized": posterior.mode() * 0.18215,
            "std": posterior.std,
            "decoded": network.decoder(network.post_quant_conv(white / 0.18215)),
        }

    narrow = dict(ch=32, ch_mult=[1, 1, 2, 2], num_res_blocks=1)
    published = dict(ch=128, ch_mult=[1, 2, 4, 4], num_res_blocks=2)
    return lambda: AutoencoderKL(**published), lambda: AutoencoderKL(**narrow), run


def _songbloom(checkout: Path):
    """Of what its code imports, only the two layers of descript-audio-codec are needed here."""
    needs = ("torchaudio", "torchaudio.transforms", "dac", "dac.nn", "dac.nn.layers", "dac.nn.quantize")
    for name in (*needs, "vector_quantize_pytorch", "einops"):
        sys.modules[name] = ModuleType(name)
    sys.modules["torchaudio"].transforms = sys.modules["torchaudio.transforms"]
    sys.modules["dac.nn.quantize"].ResidualVectorQuantize = None
    sys.modules["vector_quantize_pytorch"].ResidualVQ = sys.modules["vector_quantize_pytorch"].FSQ = None
    sys.modules["einops"].rearrange = None
    sys.modules["dac.nn.layers"].WNConv1d = lambda *args, **kw: weight_norm(nn.Conv1d(*args, **kw))
    sys.modules["dac.nn.layers"].WNConvTranspose1d = lambda *args, **kw: weight_norm(nn.ConvTranspose1d(*args, **kw))
    code = _module(checkout / "SongBloom/models/vae_frontend/autoencoders.py")

    def run(network: nn.Module) -> dict[str, Tensor]:
        media, latents = uniform("media", (1, 2, 4 * 1920)).double(), uniform("latents", (1, 64, 4)).double()
        mean, _ = network.encoder(media).chunk(2, dim=1)
        torch.manual_seed(0)
        sample = network.encode_audio(media)
        torch.manual_seed(0)
        noise = torch.randn_like(mean)
        results = {"mean": mean, "noise": noise, "sample": sample, "decoded": network.decode_audio(latents)}
        return {name: value.float() for name, value in results.items()}

    return (
        lambda: code.create_autoencoder_from_config(settings(multiples=(1, 2, 4, 8, 16), decoder_channels=128)),
        lambda: code.create_autoencoder_from_config(settings()),
        run,
    )


KINDS = {"songbloom": _songbloom, "flux2": _flux2, "wan22": _wan22, "sd_vae": _sd_vae}


def main(kind: str, checkout: Path) -> None:
    published, narrow, run = KINDS[kind](checkout)
    with torch.device("meta"):
        large = published().state_dict()
    network = narrow().eval()
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(weights(shapes))
    network.double()
    with torch.no_grad():
        results = {name: value.contiguous() for name, value in run(network).items()}
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    about = {
        "commit": commit.stdout.strip(),
        "published": {name: list(value.shape) for name, value in large.items()},
        "narrow": shapes,
    }
    (HERE / f"{kind}.json").write_text(json.dumps(about, separators=(",", ":")) + "\n")
    save_file(results, HERE / f"{kind}.safetensors")
    for name, value in results.items():
        print(name, tuple(value.shape), f"{value.abs().mean():.3g}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
