"""From a folder of media to generated media, beside diffusers' own pipelines: klein with Qwen3, Wan 2.2 with UMT5.

Small networks of the real classes with random weights, saved as published ones are. We fine-tune them on media, write
the transformer back, and the pipeline that reads it makes the same media from the same noise, scheduler included.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("transformers", reason="the text encoders")
pytest.importorskip("diffusers", reason="the pipelines")

import diffusers
from transformers import AutoTokenizer, Qwen3ForCausalLM, UMT5EncoderModel

from autoencoders.patches import to_maps, unpatchify
from configs.runs import LoadedRun, load_run
from core.keys import generator
from modalities.generation import generate
from tests.autoencoders.small import save
from tests.modalities.conditioning.small import save_text_encoder
from tests.modalities.making import numbered, video_file
from tools.bench.published import randomised
from tools.cli import main

STEPS, SCALE, SIZE, FRAMES = 4, 3.0, (64, 96), 5
PROMPT = "a red circle moving left"

YAML = """
method: self_flow
seed: 3
streams:
  {modality}:
    batch: 2
    data: {{kind: folder, path: media, caption: a cat}}
    media: {{size: [64, 96], {media}}}
    sampling: {{steps: 4, cfg_scale: 3.0, {sampling}}}
condition: {{encoder: {{kind: {encoder}, path: text, precision: fp32, {text}}}}}
trunk: {{kind: {kind}, {kind}: {{{trunk}}}}}
training: {{steps: 2, save_every: 2, device: cpu, optimizer: {{lr: 1.0e-2}}, ema: {{decay: 0.5}}}}
"""
FLUX2 = YAML.format(
    modality="image",
    media="autoencoder: {kind: flux2, path: vae}",
    sampling="shift_rule: flux2",
    encoder="qwen3",
    text="max_tokens: 48, layers: [1, 2], width: 32",
    kind="flux2",
    trunk="width: 128, heads: 8, double_blocks: 1, single_blocks: 2, text_rows: 48",
)
WAN = YAML.format(
    modality="video",
    media=f"frames: {FRAMES}, fps: 8, patch: 2, autoencoder: {{kind: wan22, path: vae}}",
    sampling="shift: 5.0",
    encoder="umt5",
    text="max_tokens: 12, width: 16",
    kind="wan",
    trunk="width: 48, heads: 4, depth: 3, hidden: 64, text_rows: 12",
)


def tuned(folder: Path, kind: str, text: str, network: torch.nn.Module) -> LoadedRun:
    """A run of two steps on the media of a folder; `network` gets its weights, through the file of diffusers' kind."""
    randomised(network).save_pretrained(folder / "base")
    (folder / "run.yaml").write_text(text)
    run, out = folder / "run", folder / "tuned.safetensors"
    assert main(["finetune", str(folder / "run.yaml"), "--from", str(folder / "base"), f"run={run}"]) == 0
    export = ["export", "--run", str(run), "--to", str(out), "--kind", f"{kind}-diffusers", "--drop", "projector"]
    assert main(export) == 0
    start = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(load_file(out))
    assert any((start[name] - value).abs().max() > 1e-3 for name, value in network.state_dict().items())
    return load_run(run, device="cpu")


def made(run: LoadedRun, modality: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a run makes of the prompt, in [0, 1], and the noise (1, N, C) that it began with."""
    stream = run.config.streams[modality]
    (media,) = generate(run.generator, modality, [PROMPT], stream.sampling, seed=0)
    part = run.generator.parts[modality][modality]
    draw = generator(0, "generate", f"{modality}/0", 0, modality)
    noise = torch.randn((len(part.ids), part.adapter.channels), generator=draw)
    return (media[modality] / 2 + 0.5).clamp(0, 1), noise[None]


@pytest.mark.slow
def test_flux2_klein_with_qwen3(tmp_path):
    save("flux2", tmp_path / "vae")
    save_text_encoder(tmp_path / "text", "qwen3")
    (tmp_path / "media").mkdir()
    for place, pixels in enumerate(numbered(4, 70, 100)):
        Image.fromarray(pixels).save(tmp_path / "media" / f"{place}.png")
    network = diffusers.Flux2Transformer2DModel(
        in_channels=128, joint_attention_dim=32, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        attention_head_dim=16, num_attention_heads=8, num_layers=1, num_single_layers=2,
    )  # fmt: skip
    ours, noise = made(tuned(tmp_path, "flux2", FLUX2, network), "image")
    pipeline = diffusers.Flux2KleinPipeline(
        # As FLUX.2's own converter writes it; the shift is that of the pipeline's mu.
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLFlux2.from_pretrained(tmp_path / "vae"),
        text_encoder=Qwen3ForCausalLM.from_pretrained(tmp_path / "text"),
        tokenizer=AutoTokenizer.from_pretrained(tmp_path / "text"),
        transformer=network,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt=PROMPT, height=SIZE[0], width=SIZE[1], num_inference_steps=STEPS, guidance_scale=SCALE,
        latents=to_maps(noise, (4, 6)), max_sequence_length=48, text_encoder_out_layers=(1, 2), output_type="pt",
    ).images[0]  # fmt: skip
    assert theirs.std() > 0.02
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


class EvenSteps(diffusers.FlowMatchEulerDiscreteScheduler):
    """Euler's steps from 1, as in FLUX.2's pipeline: Wan's asks for a number of steps alone, which would end the even
    part of the grid at a thousandth."""

    def set_timesteps(self, num_inference_steps=None, device=None, **_):
        super().set_timesteps(device=device, sigmas=np.linspace(1, 1 / num_inference_steps, num_inference_steps))


@pytest.mark.slow
def test_wan_with_umt5(tmp_path):
    save("wan22", tmp_path / "vae")
    save_text_encoder(tmp_path / "text", "umt5")
    (tmp_path / "media").mkdir()
    for place in range(2):
        video_file(tmp_path / "media" / f"{place}.mp4", numbered(6 + place, 64, 96), fps=8)
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=48, out_channels=48, text_dim=16, ffn_dim=64,
        num_layers=3,
    )  # fmt: skip
    ours, noise = made(tuned(tmp_path, "wan", WAN, network), "video")
    pipeline = diffusers.WanPipeline(
        scheduler=EvenSteps(shift=5.0),
        vae=diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "vae"),
        text_encoder=UMT5EncoderModel.from_pretrained(tmp_path / "text"),
        tokenizer=AutoTokenizer.from_pretrained(tmp_path / "text", pad_token="<pad>"),
        transformer=network,
        expand_timesteps=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    cells = (2, 4, 6)
    theirs = pipeline(
        prompt=PROMPT, height=SIZE[0], width=SIZE[1], num_frames=FRAMES, num_inference_steps=STEPS,
        guidance_scale=SCALE, latents=to_maps(unpatchify(noise, cells, 2), cells), max_sequence_length=12,
        output_type="pt",
    ).frames[0]  # fmt: skip
    assert theirs.std() > 0.02
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
