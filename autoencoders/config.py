"""Which autoencoder a modality uses, and where its weights are."""

from __future__ import annotations

from dataclasses import dataclass

PRECISIONS = ("fp32", "bf16")
POSTERIORS = ("mean", "sample")


@dataclass
class AutoencoderConfig:
    """A setting that is left out (null) takes the kind's own value; one that the kind does not read is refused.

    Attributes:
        kind: pixels, sd_vae, flux2 or rae for images; space_time_pixels or wan22 for video; mdct or songbloom for
            audio. pixels, space_time_pixels and mdct have no weights and read nothing of this section.
        path: folder with the weights (~ is the home folder), a file as their authors publish it, or their name
            (owner/name) on the Hugging Face hub.
        precision: of weights and arithmetic, fp32 (default) or bf16. Latents and media are float32 in either.
        posterior: what training takes of an encoder that predicts a distribution, its mean or a sample of it.
            Default as the publishers do: sample for sd_vae and songbloom, mean for flux2 and wan22.
        tile: length of the tiles, in pixels of a side or in samples, that long media are cut into, so that the
            network's memory is that of one tile; see `autoencoders/tiling.py` and docs/fidelity.md for what is exact.
            Default: media are not cut.
    """

    kind: str
    path: str | None = None
    precision: str | None = None
    posterior: str | None = None
    tile: int | None = None
