"""The training loop: on one device or several, in mixed precision; it can be stopped at any moment and continued.

What happens in a step depends only on the settings, the number of the step and the values before it: the order of the
data, their augmentation and the network's own random numbers (dropout) are seeded again for each step. A checkpoint
therefore holds no state of a generator, and a training that continues from one ends with the same numbers as a training
that was never stopped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.training.batches import batch_sizes, step_batches
from recipes.training.checkpoints import Progress, checkpoints, describe, read_checkpoint, settle, write_checkpoint
from recipes.training.history import Epoch, History, log_epoch, tensorboard_writer, write_history
from recipes.training.settings import Training, learning_rate, make_optimizer, seed_of
from recipes.training.task import Task

DIVERGED = 10.0
"""A training is given up if a mean of losses exceeds the plain loss of its task, or its first loss, times this."""
WINDOW = 50
"""The mean is over this number of steps, or over a shorter epoch: single steps may exceed the bound."""
FEWEST = 10
"""The least number of steps in such a mean: in a shorter epoch only a loss that is not finite counts."""
LOOK = 20
"""The number of steps on a GPU after which losses are read, because reading them waits for the GPU."""


def train(
    model: nn.Module,
    task: Task,
    settings: Training,
    folder: str | Path,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: int = 0,
    log_tensorboard: bool = True,
    progress: bool = True,
    note: Callable[[Epoch], object] | None = None,
) -> History:
    """Train a network in place, or continue a training that was stopped, or return one that is finished.

    A training is continued by the same call: with the same network (with its values from before the training), task and
    settings. On one device and with the same number of threads it ends with the same weights and rows, bit for bit, as
    a training that was not stopped. Under `accelerate launch` each batch is shared out among the processes; the
    gradient is that of the whole batch, while batch normalisations see the share of their process. The global
    generators of torch, numpy and Python are left as they were.

    Args:
        model: a network, dense or with decomposed layers; it is moved to the device, and to the memory format of the
            settings.
        task: what is learnt.
        settings: how it is learnt.
        folder: the folder for checkpoints and logs; other files in it are left alone.
        device: "auto" takes a GPU if torch finds one, or what `accelerate launch` says; "cpu" is always the CPU.
        workers: the number of processes that prepare batches; with 0 this process does. The result does not depend
            on it.
        log_tensorboard: whether scalars are written for TensorBoard too.
        progress: whether a progress bar is shown where standard error is a terminal.
        note: a function that is called with each row once it is on the disk, first with those of earlier calls.

    Returns:
        The history, with a row for each epoch.

    Raises:
        DataError: the network does not fit the task, for instance because it has fewer classes.
        DivergedError: the loss is not finite, or far above that of guessing; epoch and step are named. The network is
            left as it is then, and the last checkpoint stays.
        StudyError: the folder holds another training, is used by another process, or cannot be written; or
            TensorBoard is not installed.
        CheckpointError: the folder has checkpoints, but none of them can be read.
    """
    if log_tensorboard and find_spec("tensorboard") is None:
        fix = 'pip install "tnalgebra[train]", or log_tensorboard=False'
        raise tn.errors.StudyError("tensorboard is not installed", fix=fix)
    folder = Path(folder)
    with ExitStack() as stack:
        accelerator = _accelerator(settings, device)
        task.check(model, settings)
        if accelerator.is_main_process:
            stack.enter_context(tn.studies.locked(folder))
            settle(folder, describe(model, task, settings))
        accelerator.wait_for_everyone()
        stack.enter_context(_state_kept(model, accelerator.device))
        run = _Run(model, task, settings, folder=folder, accelerator=accelerator)
        if accelerator.is_main_process:
            with tn.studies.writing(folder):
                if log_tensorboard:
                    writer = tensorboard_writer(folder)
                    stack.callback(writer.close)
                    run.listeners.append(partial(log_epoch, writer, task.score_name))
                write_history(folder, run.state.rows)
        run.listeners += [] if note is None else [note]
        for row in run.state.rows:
            run.publish(row)
        run.finish(workers=workers, progress=progress)
        return History(tuple(run.state.rows), task.score_name)


class _Run:
    """The state of one call of `train`: the prepared network, and how far its training has come."""

    def __init__(self, model: nn.Module, task: Task, settings: Training, *, folder: Path, accelerator: Any) -> None:
        self.model, self.task, self.settings, self.folder, self.accelerator = model, task, settings, folder, accelerator
        self.sizes = batch_sizes(task.training_size, settings.batch_size)
        self.steps = len(self.sizes)
        if min(self.sizes) < accelerator.num_processes:
            fact = f"{accelerator.num_processes} processes cannot share out a batch of {min(self.sizes)} examples"
            raise tn.errors.DataError(fact, fix="a larger batch_size, or fewer processes")
        if settings.channels_last:
            tn.nn.in_memory_format(model, torch.channels_last)
        for network in task.networks:
            network.to(accelerator.device).eval()
        model.to(accelerator.device)
        forward = vars(model).get("forward")
        self.prepared, self.optimizer = accelerator.prepare(model, make_optimizer(model, settings))
        _unwrap_forward(model, forward)
        self.saved = {"model": model, "optimizer": self.optimizer, "scaler": accelerator.scaler}
        self.state: Progress = read_checkpoint(folder, **self.saved)
        self.listeners: list[Callable[[Epoch], object]] = []
        self.pending: list[Tensor] = []
        self.started = perf_counter()

    def publish(self, row: Epoch) -> None:
        for listener in self.listeners:
            listener(row)

    def finish(self, *, workers: int, progress: bool) -> None:
        """Do all remaining steps."""
        from tqdm import tqdm

        accelerator, state, total = self.accelerator, self.state, self.settings.epochs * self.steps
        if state.step == total:
            return
        batches = step_batches(
            self.task,
            self.settings,
            first=state.step,
            share=(accelerator.process_index, accelerator.num_processes),
            workers=workers,
            pinned=accelerator.device.type == "cuda",
        )
        shown = progress and accelerator.is_main_process
        look = 1 if accelerator.device.type == "cpu" else LOOK
        every = self.settings.checkpoint_every or total
        with tqdm(total=total, initial=state.step, unit="step", disable=None if shown else True) as bar:
            self.started = perf_counter()
            self.prepared.train()
            for examples, targets in batches:
                self._step(examples, targets)
                epoch, position = divmod(state.step, self.steps)
                if position == 0 or state.step % every == 0 or len(self.pending) >= look:
                    self._look_at_losses()
                    bar.set_postfix(epoch=epoch, loss=f"{state.losses[-1]:.3g}", refresh=False)
                if position == 0:
                    self._finish_epoch(epoch)
                elif state.step % every == 0:
                    self._checkpoint()
                bar.update()

    def _step(self, examples: Tensor, targets: Tensor) -> None:
        accelerator, settings, step = self.accelerator, self.settings, self.state.step
        _seed(seed_of(settings.seed, "step", step, accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, epoch_steps=self.steps)
        inputs = self.task.inputs(examples.to(accelerator.device, non_blocking=True))
        if settings.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        targets = targets.to(accelerator.device, non_blocking=True)
        with accelerator.autocast():
            outputs = self.prepared(inputs)
            outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
            loss = self.task.loss(outputs, inputs, targets, settings)
        if accelerator.num_processes > 1:
            # gradients are averaged over processes, whose shares may differ by one example
            share = len(targets) / self.sizes[step % self.steps]
            self.pending.append(loss.detach() * share)
            loss = loss * (share * accelerator.num_processes)
        else:
            self.pending.append(loss.detach())
        accelerator.backward(loss)
        if settings.clip is not None:
            accelerator.clip_grad_norm_(self.prepared.parameters(), settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1

    def _look_at_losses(self) -> None:
        """Read the losses of the steps since the last look.

        Raises:
            DivergedError: a loss is not finite, or the losses are far too large.
        """
        state, losses = self.state, torch.stack(self.pending)
        if self.accelerator.num_processes > 1:
            losses = self.accelerator.reduce(losses, reduction="sum")
        first = state.step - len(self.pending)
        self.pending = []
        for step, loss in enumerate(losses.tolist(), first + 1):
            if not isfinite(loss):
                raise self._diverged(f"the loss is {loss}", step)
            state.first_loss = loss if state.first_loss is None else state.first_loss
            state.losses.append(loss)
            recent = state.losses[-WINDOW:]
            mean, bound = sum(recent) / len(recent), DIVERGED * max(self.task.plain_loss, state.first_loss)
            if len(recent) == min(WINDOW, max(self.steps, FEWEST)) and mean > bound:
                fact = f"the loss is {mean:.3g}, the mean of {len(recent)} steps, above {bound:.3g}"
                raise self._diverged(fact, step)

    def _diverged(self, fact: str, step: int) -> tn.errors.DivergedError:
        rate = learning_rate(self.settings, step - 1, epoch_steps=self.steps)
        lower = f"a learning rate below {self.settings.learning_rate:g}, a longer warm-up, or clip=1.0"
        return tn.errors.DivergedError(
            f"training failed: {fact}",
            epoch=f"{(step - 1) // self.steps + 1} of {self.settings.epochs}",
            step=f"{step} of {self.settings.epochs * self.steps}",
            network=type(self.model).__name__,
            learning_rate=f"{rate:.3g}",
            earlier=", ".join(f"{loss:.3g}" for loss in self.state.losses[-3:]) or None,
            last_checkpoint=next(reversed(checkpoints(self.folder)), None),
            fix=f"{lower}; in another folder",
        )

    def _finish_epoch(self, epoch: int) -> None:
        """Test the network and write a checkpoint. The row is in the checkpoint before it is anywhere else."""
        state = self.state
        loss = sum(size * loss for size, loss in zip(self.sizes, state.losses, strict=True)) / sum(self.sizes)
        score = self._score()
        rate = learning_rate(self.settings, state.step - 1, epoch_steps=self.steps)
        seconds = state.seconds + perf_counter() - self.started
        row = Epoch(epoch, state.step, rate, loss, score, seconds)
        state.rows, state.losses, state.seconds = [*state.rows, row], [], 0.0
        self.started = perf_counter()
        self._write()
        if self.accelerator.is_main_process:
            with tn.studies.writing(self.folder):
                write_history(self.folder, state.rows)
        self.publish(row)

    def _score(self) -> float:
        accelerator = self.accelerator
        if accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)  # running statistics: all take those of the main process
        rows = torch.arange(self.task.test_size).tensor_split(accelerator.num_processes)[accelerator.process_index]
        sizes = {"batch_size": self.settings.batch_size, "device": accelerator.device}
        return self.task.score(accelerator.reduce(self.task.measure(self.model, rows, **sizes), reduction="sum"))

    def _checkpoint(self) -> None:
        now = perf_counter()
        self.state.seconds += now - self.started
        self.started = now
        self._write()

    def _write(self) -> None:
        """Write a checkpoint, unless a value of the network is not finite."""
        spoilt = [name for name, value in self.model.state_dict().items() if not value.isfinite().all()]
        if spoilt:
            raise self._diverged(f"not finite: {', '.join(spoilt[:3])}", self.state.step)
        if self.accelerator.is_main_process:
            write_checkpoint(self.folder, self.state, **self.saved)


def _seed(seed: int) -> None:
    """Seed every generator that a network may use."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _accelerator(settings: Training, device: str) -> Any:
    """An accelerator for these settings.

    accelerate keeps the precision and the device in states that a process shares, so those of an earlier training are
    reset first.
    """
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState, GradientState  # type: ignore[import-untyped]

    if device == "cuda" and not torch.cuda.is_available():
        raise tn.errors.StudyError("the device is 'cuda', but torch does not find a GPU", fix="device='cpu'")
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=device == "cpu")
    if settings.precision == "fp16" and accelerator.scaler is None:  # it would train in float32 instead
        raise tn.errors.StudyError("precision='fp16' needs a GPU", fix="precision='bf16', or 'no'")
    return accelerator


@contextmanager
def _state_kept(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore modes, global generators, and the attributes of the model, which accelerate wraps for autocast.

    Inside, cuDNN uses only algorithms that give the same bits each time.
    """
    attributes = dict(vars(model))
    generators = random.getstate(), np.random.get_state()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    devices = [device] if device.type == "cuda" else []
    try:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        with tn.model.modes_kept(model), torch.random.fork_rng(devices):
            yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        for name in {*vars(model)} - {*attributes}:
            delattr(model, name)
        _unwrap_forward(model, attributes.get("forward"))


def _unwrap_forward(model: nn.Module, forward: Any) -> None:
    """Undo the autocast that accelerate puts around `forward`: steps have one of their own, tests have none."""
    vars(model).pop("forward", None)
    if forward is not None:
        model.forward = forward
