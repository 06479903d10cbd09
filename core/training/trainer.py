"""The one training loop: every modality, every method."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from typing import Any, cast

import torch
from torch import nn

from core.errors import BadStepError, CheckpointError, ConfigError, NotFiniteError, described, first_line
from core.objective import Objective, total_loss
from core.progress import ProgressBar
from core.training.accidents import accidents_named
from core.training.adapter import train_only
from core.training.checkpoint import CheckpointStore
from core.training.compiled import compile_blocks, is_of_compiler, run_as_written
from core.training.distributed import ALONE, World
from core.training.ema import make_teacher, update_teacher
from core.training.evidence import Share
from core.training.flatness import Flatness
from core.training.guards import all_finite, check_finite, write_bad_step
from core.training.hooks import Hook, attempt, due_hooks, run_hooks
from core.training.loader import BatchLoader, Microbatch, Preprocess, Raw, Rejected
from core.training.onlooker import Onlooker
from core.training.optim import build_optimizer
from core.training.posthoc_ema import PosthocEma
from core.training.quarantine import Quarantine
from core.training.records import RunFolder, read_lines
from core.training.saver import Saver
from core.training.say import Outliving, say
from core.training.sharding import Sharding, clip_gradients, gathered, materialize, settle, shell, sync_gradients
from core.training.spikes import MARK, Spikes, save_spike
from core.training.state import NOTHING_ANEW, Anew, restore, training_state
from core.training.stop import Stopped, StopRequest
from core.training.stragglers import Stragglers
from core.training.training_config import TrainingConfig
from core.training.watchdog import FOLDER, Watchdog
from core.trunk.recompute import recompute


class Trainer:
    """Owns student, teacher and optimizer; `fit` runs from the last checkpoint to the last step.

    Args:
        loader: batches by step; all randomness is already in them.
        loss_weights: stream -> factor of the whole loss of its steps (paper App. D).
        extra: plain data stored in every checkpoint, enough to generate from it alone.
        preprocess: completes every batch on the training device; None where the loader gives microbatches.
        warnings: told at the start of a new run.
        hooks: what looks at the networks while they train, and changes nothing.
        anew: what is not taken from the checkpoint that the run resumes from.
        initialized: the weights come from elsewhere, so that they are published before the first step.
        store: of the run's checkpoints, where it has been looked into already, so that nothing is verified twice.
        advice: what a run that hangs says last, such as the command that goes on with it.
        start: fills a student that was built on the meta device with its initial weights, once it is sharded.
        world: the processes of the run; every one has a trainer, and the folder of those but the first is an Onlooker.
        compiled: compile the blocks, see core/training/compiled.py; `extra` says so too.
    """

    def __init__(
        self,
        config: TrainingConfig,
        student: nn.Module,
        objective: Objective,
        loader: BatchLoader,
        folder: RunFolder | Onlooker,
        loss_weights: dict[str, float],
        extra: dict[str, Any],
        preprocess: Preprocess | None = None,
        warnings: Sequence[str] = (),
        hooks: Sequence[Hook] = (),
        anew: Anew = NOTHING_ANEW,
        initialized: bool = False,
        store: CheckpointStore | None = None,
        advice: str = "",
        start: Callable[[nn.Module], None] | None = None,
        world: World = ALONE,
        compiled: bool = False,
    ):
        self.config, self.objective, self.loader, self.folder = config, objective, loader, folder
        self.loss_weights, self.extra, self.preprocess = loss_weights, extra, preprocess
        self.warnings, self.hooks = warnings, hooks
        self.device = config.torch_device()
        self.world, self.compiled = world, compiled
        self.student = (student if start is not None else student.to(self.device)).train()
        if config.trainable or config.adapter is not None:
            train_only(self.student, config.trainable)
        self.teacher = make_teacher(self.student)
        self.shells = (
            [shell(model) for model in (self.student, self.teacher)] if hooks and world.is_first else [None] * 2
        )
        self.shard()
        if start is not None:
            materialize(self.student, self.teacher, self.device, start)
        self.optimizer = build_optimizer(config.optimizer, self.student)
        averages = config.posthoc_ema
        self.posthoc = PosthocEma(averages, self.student, folder.path, world) if averages.every else None
        place = folder.path / "checkpoints"
        self.store = store or CheckpointStore(place, config.keep, keep_every=config.keep_every)
        self.store.world = world.apart() if config.async_save else world
        self.saver = Saver(self.store, config.async_save)
        self.quarantine = Quarantine(folder.path / "quarantine.jsonl", config.data_limit, world)
        self.anew, self.initialized = anew, initialized
        self.step = 0  # finished steps
        self.spikes, self.stragglers = Spikes(config.spikes), Stragglers(config.compare_ranks_every, world)
        self.flatness = Flatness()
        self.stop = StopRequest(config.stop_within, advice)
        self.stopping = False  # what all processes have agreed on
        self.own_values = torch.empty(0)  # of this process, in the last step
        stacks = folder.path / FOLDER / f"rank-{world.rank}.txt"
        self.watchdog = Watchdog(config.watchdog, stacks, lambda: folder.ended("failed", self.step, "hung"), advice)

    def shard(self) -> None:
        """Compile and shard both networks, block by block and in place, so that names and checkpoints stay the same."""
        if self.compiled:
            compile_blocks([self.student, self.teacher], len(self.loss_weights))
        sharding = Sharding(self.world, self.device, self.config.replicas, self.config.precision)
        sharding.apply(self.student)
        recompute(self.student, self.config.recompute)
        sharding.apply(self.teacher, teacher=True)

    def fit(self, stop: StopRequest | None = None) -> str:
        """Train to the last step. Returns 'finished', or 'stopped' after SIGTERM or SIGINT, with a published checkpoint
        where a step was done. run.json then says so.

        Args:
            stop: where one is open already.

        Raises BadStepError, with the state before the bad step published, and AccidentError for what the machine did.
        """
        with nullcontext(stop) if stop is not None else self.stop as self.stop, closing(self.folder):
            try:
                with self.world.errors_shared(), accidents_named(), self.watchdog:
                    state = self.run()
            except Exception as error:
                self.folder.ended("failed", self.step, described(error))
                raise
            self.folder.ended(state, self.step, self.stop.reason)
            return state

    def run(self) -> str:
        """The loop. A request to stop ends it after the step that runs, or at once between two steps."""
        last, alone = self.config.steps, self.world.size == 1
        try:
            with self.stop.leavable(alone):
                self.step = first = self.resume()
            for warning in self.warnings if first == 0 else ():
                say(f"warning: {warning}")
            steps = self.loader.steps(first, last)
            with closing(self.quarantine), closing(steps), self.bar(first, last) as bar:
                self.snapshot()  # what a killed or stopped run owes of its last checkpoint
                self.look()
                started = time.perf_counter()
                self.watchdog.step()
                for step, microbatches in self.stop.waiting(steps, alone):
                    waited = time.perf_counter() - started
                    self.watchdog.step(microbatches[0].stream)
                    metrics = self.attempt(step, microbatches)
                    self.step = step + 1
                    self.folder.write_metrics({"step": self.step, **metrics})
                    seconds = time.perf_counter() - started
                    self.folder.write_timing(step=self.step, seconds=seconds, waited=waited)
                    self.folder.write_ranks(self.step, self.stragglers.add(self.step, seconds=seconds, waited=waited))
                    self.show(bar, metrics)
                    for line in self.flatness.add(metrics):
                        say(f"note: step {self.step}: {line}")
                    self.snapshot()
                    self.stopping = self.stop.requested if alone else self.stopping
                    if self.is_save_due() or self.step == last or self.stopping:
                        self.save(leaving=self.stopping or self.step == last)
                    if self.stopping and not alone:
                        break
                    self.look()
                    started = time.perf_counter()
                    self.watchdog.step()
        except Stopped:
            if alone and self.step:
                self.save_if_missing(self.step)
        finally:
            self.watchdog.start()
            with self.stop.publishing():
                self.saver.close()
        return "finished" if self.step == last else "stopped"

    def attempt(self, step: int, microbatches: Sequence[Raw]) -> dict[str, float | str]:
        """A step, or nothing where it is to be left out. Before a bad one ends the run, the state is published."""
        if step + 1 in self.config.skip_steps:
            self.stopping = any(self.world.gather(self.stop.requested))
            return {"stream": microbatches[0].stream, "skipped": True}
        try:
            return self.train_step(step, microbatches)
        except BadStepError as error:
            if not self.is_finite():
                raise NotFiniteError(f"{error}, but they hold NaN or infinity since an earlier step") from error
            if step:
                try:
                    self.save_if_missing(step)
                except (CheckpointError, OSError) as failed:  # the bad step is the greater news
                    say(f"checkpoint of step {step} could not be saved: {failed}")
            raise
        except Exception as error:
            if not self.compiled or not is_of_compiler(error):
                raise
            self.leave_compiler(step, error)
            return self.attempt(step, microbatches)

    def leave_compiler(self, step: int, error: Exception) -> None:
        """The compilation failed: nothing of the step is done, and all from it on are made as they are written."""
        if self.config.compile == "on" or self.world.size > 1:
            raise ConfigError(
                f"training.compile: {self.config.compile}, and step {step + 1} could not be compiled: "
                f"{first_line(error)}; allowed: auto, off (where there is a checkpoint: --change training.compile=off)"
            ) from error
        run_as_written([self.student, self.teacher])
        self.compiled = self.extra["compiled"] = False
        why = f"step {step + 1} could not be compiled: {first_line(error)}"
        say(f"compile: {why}; it is done as it is written, and all that follow, which round differently")
        self.folder.note_compiled(step, False, why)

    def train_step(self, step: int, microbatches: Sequence[Raw]) -> dict[str, float | str]:
        """One optimizer step: all microbatches, guard, AdamW, EMA. Returns the metrics of the step."""
        stream, counts = microbatches[0].stream, self.counts(microbatches)
        lr = self.config.optimizer.lr_at(step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.device, dtype=torch.float64))
        autocast = self.config.precision == "bf16" and self.world.size == 1
        for number, microbatch in enumerate(microbatches, start=1):
            sync_gradients(self.student, last=number == len(microbatches))
            moved = self.complete(microbatch.to(self.device), step)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                terms = self.objective(
                    self.student, self.teacher, moved.batch, moved.drawn, counts, moved.targets, step
                )
                loss = self.loss_weights[stream] * total_loss(terms)
            loss.backward()
            values["loss"] += loss.detach()
            for name, term in terms.items():
                values[name] += term.mean().detach()
        metrics = self.reduce(values, microbatches)
        self.guard(step, microbatches, metrics)
        if self.spikes.is_spike(stream, metrics):
            shares = self.shares(microbatches, metrics)
            save_spike(self.folder.path, self.world.rank, step, microbatches, metrics, shares)
            self.spikes.contain(step, stream, metrics, self.folder.path)
            return {"stream": stream, "lr": lr, **metrics, MARK: True}
        self.spikes.add(stream, metrics, spike=False)
        self.optimizer.step()
        settle(self.student)
        update_teacher(self.teacher, self.student, self.config.ema.decay)
        if self.posthoc is not None:
            self.posthoc.update(step + 1)
        return {"stream": stream, "lr": lr, **metrics}

    def counts(self, microbatches: Sequence[Raw]) -> dict[str, float]:
        """Tokens that carry loss in the whole step, by part; an exchange only where they depend on records."""
        counts: dict[str, float] = defaultdict(float)
        own = [(name, count) for microbatch in microbatches for name, count in microbatch.counts.items()]
        known = all(microbatch.counts_of_all for microbatch in microbatches)
        for name, count in own if known else [item for other in self.world.gather(own) for item in other]:
            counts[name] += count
        return counts

    def reduce(self, values: dict[str, torch.Tensor], microbatches: Sequence[Raw]) -> dict[str, float]:
        """The step's sums over all processes, and its gradient norm, in the one wait for the device; what else the
        processes must agree on travels with them."""
        rejected = tuple(record for microbatch in microbatches for record in microbatch.rejected)
        flags = torch.tensor([self.stop.requested, len(rejected)], dtype=torch.float64).to(self.device)
        self.own_values = torch.stack(list(values.values()))
        summed = self.world.sum(torch.cat([self.own_values, flags]))
        norm = clip_gradients(self.student.parameters(), self.config.optimizer.clip)
        *sums, stops, bad, norm = torch.cat([summed, norm.double()[None]]).tolist()
        self.agree(self.world.gather((stops > 0, rejected)) if bad else [(stops > 0, ())])
        return dict(zip(values, sums, strict=True)) | {"grad_norm": norm}

    def agree(self, found: Sequence[tuple[bool, Sequence[Rejected]]]) -> None:
        """What the processes have met in a step: requests to stop, and records that could not be used."""
        self.stopping = any(stops for stops, _ in found)
        records = [record for _, own in found for record in own]
        self.quarantine.add(sorted(records, key=lambda record: record.position))

    def is_finite(self) -> bool:
        """Whether all weights are, in every process."""
        return all(self.world.gather(all_finite(self.student, self.teacher)))

    def complete(self, raw: Raw, step: int) -> Microbatch:
        if self.preprocess is None:  # then the loader's are complete
            return cast(Microbatch, raw)
        return self.preprocess(raw, self.objective.reads_targets(step))

    def guard(self, step: int, microbatches: Sequence[Raw], metrics: dict[str, float]) -> None:
        """Before the optimizer sees the gradients: a value that is not finite stops the run and leaves evidence."""
        if not check_finite(metrics):
            folder, stream, shares = (
                cast(RunFolder, self.folder),
                microbatches[0].stream,
                self.shares(microbatches, metrics),
            )
            self.world.on_first(lambda: write_bad_step(folder, step, stream, metrics, shares))

    def shares(self, microbatches: Sequence[Raw], metrics: dict[str, float]) -> list[Share]:
        """What every process had of a step."""
        keys = tuple(key for microbatch in microbatches for key in microbatch.keys)
        if self.world.size == 1:
            return [Share(keys, dict(metrics))]
        own = dict(zip(metrics, self.own_values.tolist(), strict=False))  # without the gradient norm, which is of all
        return self.world.gather(Share(keys, own))

    def bar(self, first: int, last: int) -> ProgressBar:
        hidden, file = not self.world.is_first, Outliving(sys.stderr)
        return ProgressBar(total=last, initial=first, unit="step", file=file, disable=hidden)

    def show(self, bar: ProgressBar, metrics: dict[str, Any]) -> None:
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
        self.spikes.read(self.world.on_first(lambda: self.forget(step)))
        return step

    def forget(self, step: int) -> list[dict[str, Any]]:
        """Remove what was written of the steps after `step`, which are done again; the lines of those before, where
        they are looked at."""
        self.folder.truncate(step)
        for hook in self.hooks:
            hook.forget(step)
        if self.posthoc is not None:
            self.posthoc.store.forget(step)
        return read_lines(self.folder.path / "metrics.jsonl") if self.config.spikes.above else []

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
        if not any(self.step and self.step % hook.every == 0 for hook in self.hooks):
            return
        with self.stop.leavable(self.world.size == 1):
            if not self.world.on_first(lambda: bool(due_hooks(self.hooks, self.step))):
                return
            self.watchdog.start()
            models = self.student, self.teacher
            if self.world.size > 1:  # rank 0 looks at whole copies, and the others wait
                models = [gathered(model, empty) for model, empty in zip(models, self.shells, strict=True)]
            self.world.on_first(lambda: self.run_hooks(*cast(Sequence[nn.Module], models)))

    def run_hooks(self, student: nn.Module, teacher: nn.Module) -> None:
        trackers = cast(RunFolder, self.folder).trackers
        run_hooks(due_hooks(self.hooks, self.step), self.step, student, teacher, trackers, self.compiled)

    def save_if_missing(self, step: int) -> None:
        """Before the run ends: the checkpoint of its last step, which may be in flight or there already."""
        with self.stop.publishing():
            self.saver.wait()
        if self.world.on_first(lambda: step not in self.store.steps()):
            self.save(leaving=True)

    def save(self, leaving: bool) -> None:
        """Publish a checkpoint. One failed save (a full disk) is reported; the second in a row, and one that nothing
        would follow, is an error. Weights that are not finite are never published."""
        with self.stop.publishing():
            if not self.is_finite():
                raise NotFiniteError(
                    f"after step {self.step} the weights hold NaN or infinity; they were not published"
                )
            self.watchdog.start()
            self.saver.save(self.step, self.state, self.extra, leaving)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds. The lines of its steps are on disk before it is."""
        self.world.on_first(self.folder.flush)
        posthoc = {} if self.posthoc is None else self.posthoc.state()
        return training_state(self.student, self.teacher, self.optimizer) | posthoc
