"""The one training loop: every modality, every method."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from tqdm import tqdm

from core.errors import BadStepError, CheckpointError, ConfigError, NotFiniteError, described
from core.objective import Objective, total_loss
from core.training.accidents import accidents_named
from core.training.checkpoint import NOTHING_ANEW, Anew, CheckpointStore, restore, training_state
from core.training.ema import EmaConfig, make_teacher, update_teacher
from core.training.evidence import Share
from core.training.guards import all_finite, check_finite, write_bad_step
from core.training.hooks import Hook, PreviewConfig, ValidateConfig, attempt, due_hooks, run_hooks
from core.training.loader import BatchLoader, Microbatch, Preprocess, Raw
from core.training.optim import OptimizerConfig, build_optimizer
from core.training.posthoc_ema import PosthocEma, PosthocEmaConfig
from core.training.quarantine import Quarantine
from core.training.records import RunFolder, read_lines
from core.training.say import Outliving, say
from core.training.spikes import MARK, Spikes, SpikesConfig, save_spike
from core.training.stop import Stopped, StopRequest
from core.training.watchdog import FOLDER, Watchdog, WatchdogConfig


@dataclass
class TrainingConfig:
    """
    Attributes:
        steps: optimizer steps of the whole run.
        accumulate: microbatches per optimizer step; each holds `batch / accumulate` samples.
        save_every: steps between checkpoints; one is always published at the end and on a stop.
        keep: how many of the newest checkpoints stay.
        keep_every: a checkpoint is also published at every multiple of this, and stays for ever; 0 for none.
        precision: fp32, or bf16 (autocast; weights, EMA, losses and cosine stay float32).
        compile: compile student and teacher with torch.compile.
        device: auto (cuda if there is one, else cpu), cpu or cuda.
        workers: processes that prepare batches; 0 prepares them in the training process.
        data_limit: distinct unusable records after which the run stops.
        skip_steps: steps, by their number in metrics.jsonl, that are left out: their data are consumed and nothing is
            updated. May grow when a run is resumed.
        stop_within: seconds from a request to stop until its checkpoint is begun; a step that takes longer is lost.
    """

    steps: int = 1000
    accumulate: int = 1
    save_every: int = 1000
    keep: int = 2
    keep_every: int = 0
    precision: str = "fp32"
    compile: bool = False
    device: str = "auto"
    workers: int = 0
    data_limit: int = 100
    skip_steps: list[int] = field(default_factory=list)
    stop_within: float = 20.0
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    spikes: SpikesConfig = field(default_factory=SpikesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    posthoc_ema: PosthocEmaConfig = field(default_factory=PosthocEmaConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)

    def problems(self) -> list[str]:
        found = []
        for name, least in {
            "steps": 1,
            "accumulate": 1,
            "save_every": 1,
            "keep": 2,
            "keep_every": 0,
            "workers": 0,
            "data_limit": 0,
        }.items():
            if getattr(self, name) < least:
                found.append(f"{name}: {getattr(self, name)} must be at least {least}")
        if self.stop_within <= 0:
            found.append(f"stop_within: {self.stop_within} must be above 0")
        if wrong := [step for step in self.skip_steps if step < 1]:
            found.append(f"skip_steps: {wrong[0]} must be at least 1, the number of the first step")
        for name, allowed in {"precision": ("fp32", "bf16"), "device": ("auto", "cpu", "cuda")}.items():
            if getattr(self, name) not in allowed:
                found.append(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        return found

    def torch_device(self) -> torch.device:
        """The device to train on; raises ConfigError when cuda is asked for and missing."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("training.device: 'cuda' was asked for, but torch sees no GPU; allowed: auto, cpu")
        wanted = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(wanted)


class Trainer:
    """Owns student, teacher and optimizer; `fit` runs from the last checkpoint to the last step.

    Args:
        feed: batches by step; all randomness is already in them.
        loss_weights: stream -> factor of the whole loss of its steps (paper App. D).
        extra: plain data stored in every checkpoint, enough to generate from it alone.
        preprocess: completes every batch on the training device; None for a feed of microbatches.
        warnings: told at the start of a new run.
        hooks: what looks at the networks while they train, and changes nothing.
        anew: what is not taken from the checkpoint that the run resumes from.
        initialized: the weights come from elsewhere, so that they are published before the first step.
        store: of the run's checkpoints, where it has been looked into already, so that nothing is verified twice.
        advice: what a run that hangs says last, such as the command that goes on with it.
    """

    def __init__(
        self,
        config: TrainingConfig,
        student: nn.Module,
        objective: Objective,
        loader: BatchLoader,
        folder: RunFolder,
        loss_weights: dict[str, float],
        extra: dict[str, Any],
        preprocess: Preprocess | None = None,
        warnings: Sequence[str] = (),
        hooks: Sequence[Hook] = (),
        anew: Anew = NOTHING_ANEW,
        initialized: bool = False,
        store: CheckpointStore | None = None,
        advice: str = "",
    ):
        self.config, self.objective, self.loader, self.folder = config, objective, loader, folder
        self.loss_weights, self.extra, self.preprocess = loss_weights, extra, preprocess
        self.warnings, self.hooks = warnings, hooks
        self.device = config.torch_device()
        self.student = student.to(self.device).train()
        self.teacher = make_teacher(self.student)
        self.optimizer = build_optimizer(config.optimizer, self.student)
        self.posthoc = PosthocEma(config.posthoc_ema, self.student, folder.path) if config.posthoc_ema.every else None
        place = folder.path / "checkpoints"
        self.store = store or CheckpointStore(place, config.keep, keep_every=config.keep_every)
        self.quarantine = Quarantine(folder.path / "quarantine.jsonl", config.data_limit)
        self.anew, self.initialized = anew, initialized
        self.step = 0  # finished steps
        self.spikes = Spikes(config.spikes)
        self.stop = StopRequest(config.stop_within, advice)
        stacks = folder.path / FOLDER / "rank-0.txt"
        self.watchdog = Watchdog(config.watchdog, stacks, lambda: folder.ended("failed", self.step, "hung"), advice)
        self.failed_saves = 0
        if config.compile:  # in place, so that parameter names and checkpoints stay the same
            self.student.compile()
            self.teacher.compile()

    def fit(self, stop: StopRequest | None = None) -> str:
        """Train to the last step. Returns 'finished', or 'stopped' after SIGTERM or SIGINT, with a published checkpoint
        where a step was done. run.json then says so.

        Args:
            stop: where one is open already.

        Raises BadStepError, with the state before the bad step published, and AccidentError for what the machine did.
        """
        with nullcontext(stop) if stop is not None else self.stop as self.stop, closing(self.folder):
            try:
                with accidents_named(), self.watchdog:
                    state = self.run()
            except Exception as error:
                self.folder.ended("failed", self.step, described(error))
                raise
            self.folder.ended(state, self.step, self.stop.reason)
            return state

    def run(self) -> str:
        """The loop. A request to stop ends it after the step that runs, or at once between two steps."""
        last = self.config.steps
        try:
            with self.stop.leavable():
                self.step = first = self.resume()
            for warning in self.warnings if first == 0 else ():
                say(f"warning: {warning}")
            with (
                closing(self.quarantine),
                closing(self.loader.steps(first, last)) as steps,
                tqdm(total=last, initial=first, unit="step", dynamic_ncols=True, file=Outliving(sys.stderr)) as bar,
            ):
                self.snapshot()  # what a killed or stopped run owes of its last checkpoint
                self.look()
                started = time.perf_counter()
                self.watchdog.step()
                for step, microbatches in self.stop.waiting(steps):
                    waited = time.perf_counter() - started
                    self.watchdog.step(microbatches[0].stream)
                    metrics = self.attempt(step, microbatches)
                    self.step = step + 1
                    self.folder.write_metrics({"step": self.step, **metrics})
                    self.folder.write_timing(step=self.step, seconds=time.perf_counter() - started, waited=waited)
                    self.show(bar, metrics)
                    self.snapshot()
                    if self.is_save_due() or self.step == last or self.stop.requested:
                        self.save(leaving=self.stop.requested or self.step == last)
                    self.look()
                    started = time.perf_counter()
                    self.watchdog.step()
        except Stopped:
            if self.step and self.step not in self.store.steps():
                self.save(leaving=True)
        return "finished" if self.step == last else "stopped"

    def attempt(self, step: int, microbatches: Sequence[Raw]) -> dict[str, float | str]:
        """A step, or nothing where it is to be left out. Before a bad one ends the run, the state is published."""
        if step + 1 in self.config.skip_steps:
            return {"stream": microbatches[0].stream, "skipped": True}
        try:
            return self.train_step(step, microbatches)
        except BadStepError as error:
            if not all_finite(self.student, self.teacher):
                raise NotFiniteError(f"{error}, but they hold NaN or infinity since an earlier step") from error
            if step and step not in self.store.steps():
                try:
                    self.save(leaving=True)
                except (CheckpointError, OSError) as failed:  # the bad step is the greater news
                    say(f"checkpoint of step {step} could not be saved: {failed}")
            raise

    def train_step(self, step: int, microbatches: Sequence[Raw]) -> dict[str, float | str]:
        """One optimizer step: all microbatches, video, guard, AdamW, EMA. Returns the metrics of the step."""
        stream = microbatches[0].stream
        counts: dict[str, float] = defaultdict(float)
        for microbatch in microbatches:
            self.quarantine.add(microbatch.rejected)
            for name, count in microbatch.counts.items():
                counts[name] += count

        lr = self.config.optimizer.lr_at(step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for microbatch in microbatches:
            moved = self.complete(microbatch.to(self.device), step)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                terms = self.objective(
                    self.student, self.teacher, moved.batch, moved.drawn, counts, moved.targets, step
                )
                loss = self.loss_weights[stream] * total_loss(terms)
            loss.backward()
            values["loss"] += loss.detach()
            for name, term in terms.items():
                values[name] += term.mean().detach()
        values["grad_norm"] = nn.utils.clip_grad_norm_(self.student.parameters(), self.config.optimizer.clip)

        metrics = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))  # the one host sync
        self.guard(step, microbatches, metrics)
        if self.spikes.is_spike(stream, metrics):
            save_spike(self.folder.path, 0, step, microbatches, metrics, self.shares(microbatches, metrics))
            self.spikes.contain(step, stream, metrics, self.folder.path)
            return {"stream": stream, "lr": lr, **metrics, MARK: True}
        self.spikes.add(stream, metrics, spike=False)
        self.optimizer.step()
        update_teacher(self.teacher, self.student, self.config.ema.decay)
        if self.posthoc is not None:
            self.posthoc.update(step + 1)
        return {"stream": stream, "lr": lr, **metrics}

    def complete(self, raw: Raw, step: int) -> Microbatch:
        if self.preprocess is None:  # then the loader's are complete
            return cast(Microbatch, raw)
        return self.preprocess(raw, self.objective.reads_targets(step))

    def guard(self, step: int, microbatches: Sequence[Raw], metrics: dict[str, float]) -> None:
        """Before the optimizer sees the gradients: a value that is not finite stops the run and leaves evidence."""
        if not check_finite(metrics):
            write_bad_step(self.folder, step, microbatches[0].stream, metrics, self.shares(microbatches, metrics))

    def shares(self, microbatches: Sequence[Raw], values: dict[str, float]) -> list[Share]:
        """What every process had of a step."""
        return [Share(tuple(key for microbatch in microbatches for key in microbatch.keys), dict(values))]

    def show(self, bar: tqdm[Any], metrics: dict[str, Any]) -> None:
        bar.set_postfix_str(
            f"{metrics['stream']} "
            + (f"loss {metrics['loss']:.3f}" if "loss" in metrics else "left out")
            + (f", {len(self.quarantine)} bad records" if len(self.quarantine) else ""),
            refresh=False,
        )
        bar.update()

    def resume(self) -> int:
        """Load the newest intact checkpoint if there is one; the number of finished steps."""
        step = self.store.latest()
        if step is None:
            step = 0
            if self.initialized:
                self.save(leaving=True)
        else:
            more = self.posthoc.state() if self.posthoc is not None and step else {}
            restore(self.store, step, self.student, self.teacher, self.optimizer, self.anew, more)
        self.folder.truncate(step)
        self.spikes.read(read_lines(self.folder.path / "metrics.jsonl") if self.config.spikes.above else ())
        for hook in self.hooks:
            hook.forget(step)
        if self.posthoc is not None:
            self.posthoc.store.forget(step)
        return step

    def is_save_due(self) -> bool:
        """Whether this step has a checkpoint of its own."""
        every = (self.config.save_every, self.config.keep_every)
        return any(steps and self.step % steps == 0 for steps in every)

    def snapshot(self) -> None:
        """Store the post-hoc averages where this step is due, before its checkpoint. A failure is reported."""
        posthoc, every = self.posthoc, self.config.posthoc_ema.every
        if posthoc is not None and self.step and (self.step % every == 0 or self.step == self.config.steps):
            attempt(f"EMA snapshot of step {self.step}", lambda: posthoc.snapshot(self.step))

    def look(self) -> None:
        """Hooks that are due at this step and have not been called for it, after its checkpoint."""
        with self.stop.leavable():
            if due := due_hooks(self.hooks, self.step):
                self.watchdog.start()
                compiled = self.config.compile
                run_hooks(due, self.step, self.student, self.teacher, self.folder.trackers, compiled)

    def save(self, leaving: bool) -> None:
        with self.stop.publishing():
            self.publish(leaving)

    def publish(self, leaving: bool) -> None:
        """Publish a checkpoint. One failed save (a full disk) is reported; the second in a row, and one that nothing
        would follow, is an error. Weights that are not finite are never published."""
        if not all_finite(self.student, self.teacher):
            raise NotFiniteError(f"after step {self.step} the weights hold NaN or infinity; they were not published")
        self.watchdog.start()
        try:
            self.folder.flush()
            state = training_state(self.student, self.teacher, self.optimizer)
            if self.posthoc is not None:
                state |= self.posthoc.state()
            self.store.publish(self.step, state, self.extra)
        except (CheckpointError, OSError) as error:
            self.failed_saves += 1
            if self.failed_saves >= 2 or leaving:
                raise
            say(f"checkpoint of step {self.step} could not be saved: {error}")
        else:
            self.failed_saves = 0
