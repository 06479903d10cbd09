"""Settings that work but are probably a mistake: reported by the dry run and at the start of training."""

from __future__ import annotations

from configs.schema import Config
from core.sampling.sampler import SamplerConfig
from core.training.training_config import TrainingConfig
from modalities.conditioning.conditions import ConditionConfig

PROBES = 4096  # steps at which a schedule is looked at
REACHED = 0.99  # of the learning rate that is asked for


def warnings(config: Config) -> list[str]:
    """One line each; empty for most runs."""
    training = config.training
    found = [(f"training.{line}" if line else None) for line in (schedule_warning(training), ema_warning(training))]
    for name, stream in config.streams.items():
        line = guidance_warning(stream.sampling, config.condition)
        found.append(f"streams.{name}.sampling.{line}" if line else None)
    return [line for line in found if line]


def ema_warning(training: TrainingConfig) -> str | None:
    """A warning for an average that is longer than a fifth of the run."""
    return training.ema.warning(training.steps)


def schedule_warning(training: TrainingConfig) -> str | None:
    """A warning for a learning rate that the schedule never reaches."""
    optimizer, steps, last = training.optimizer, training.steps, training.optimizer.last_steps()
    probed = {round(place * (steps - 1) / PROBES) for place in range(PROBES + 1)}
    probed |= {step for step in (optimizer.warmup - 1, steps - last) if 0 <= step < steps}
    peak = max(optimizer.lr_at(step, steps) for step in probed)
    if peak >= REACHED * optimizer.lr:
        return None
    fitting = max(steps // 10, 1)
    return (
        f"optimizer: with warmup {optimizer.warmup} and cooldown {last} in {steps} steps the "
        f"learning rate reaches {peak:.3g} and never the lr {optimizer.lr:g}. Train for more than "
        f"{optimizer.warmup + last} steps, or warm up and cool down for {fitting}"
    )


def guidance_warning(sampling: SamplerConfig, condition: ConditionConfig) -> str | None:
    """A warning for a guidance scale whose condition, or null condition, the model never learned."""
    scale = sampling.guidance()
    if scale == 1:
        return None
    if condition.kind == "none":
        return f"cfg_scale: {scale:g} changes nothing with condition.kind none; leave it at 1"
    if condition.dropped() == 0:
        return (
            f"cfg_scale: {scale:g} needs the null condition, which the model never learns with "
            "condition.cfg_dropout 0; train with 0.1, or leave it at 1"
        )
    return None
