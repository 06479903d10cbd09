"""Self-Flow in a training loop of your own: a SiT on 8 x 8 latents of two classes.

python docs/examples/training_loop.py [STEPS]
"""

from __future__ import annotations

import sys

import torch

import selfflow as sf


def batch_of(step: int, size: int = 16) -> sf.TokenBatch:
    """Latents around -1 (class 0) and 1 (class 1). Yours come from a data loader and an autoencoder."""
    rng = torch.Generator().manual_seed(step)
    label = torch.randint(2, (size,), generator=rng)
    latents = (2.0 * label - 1)[:, None, None] + 0.3 * torch.randn(size, 64, 16, generator=rng)
    dropped = torch.rand(size, generator=rng) < 0.1  # for classifier-free guidance
    return sf.token_batch(latents, grid=(1, 8, 8), label=label, dropped=dropped)


def main(steps: int = 150) -> None:
    torch.manual_seed(0)
    method = sf.method("self_flow")  # "flow_matching", "sra", "layersync", ... take the same loop
    config = sf.SiTConfig(width=96, depth=4, heads=4, grid=8, num_classes=3)
    student = sf.SiT(config, projectors=method.projectors())
    teacher, objective = sf.make_teacher(student), method.objective(student.depth)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    for step in range(steps):
        batch = batch_of(step)
        noise = sf.draw(batch, method.noising, seed=step, mask_ratio=0.25)
        terms = objective(student, teacher, batch, noise, step=step)
        loss = sf.total_loss(terms)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sf.update_teacher(teacher, student, decay=0.95)
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: " + ", ".join(f"{name} {term.mean().item():.3f}" for name, term in terms.items()))

    wanted = sf.token_batch(torch.zeros(4, 64, 16), grid=(1, 8, 8), label=torch.tensor([0, 0, 1, 1]))
    (tokens,) = sf.sample(teacher, wanted, sf.initial_noise(0, wanted), sf.SamplerConfig(steps=20, cfg_scale=2.0))
    for label, one in zip([0, 0, 1, 1], tokens, strict=True):
        print(f"class {label}: mean {one.mean():.2f}, deviation {one.std():.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
