"""The order of samples and the random streams of a training run, both functions of the seed: so a run can be resumed.

Process r of P takes the samples number r, P + r, 2P + r, ... of the endless sequence epoch 0, epoch 1, ...; each
epoch is a permutation drawn from (seed, epoch). So no sample is dropped or repeated at the end of an epoch, a
position is one number, and P processes see together what one process sees alone.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset, get_worker_info


class EpochDataset(Protocol):
    """A dataset of the loop; any map-style dataset of the host is one.

    `__getitem__` is called with the global python, numpy and torch CPU generators seeded by (seed, epoch, index),
    in a worker or not: what it draws from them is new in each epoch and the same in a resumed run. It must keep no
    generator of its own. It may have methods: `describe(index) -> str`, which messages about a sample then say;
    `epoch_indices(generator)`, the `len` indices that an epoch has, instead of 0, 1, ...; `begin_step(step)`, called
    before each item with the number of the optimizer step that takes it.
    """

    load_from_cache: bool
    """The host calls `model({}, inputs=sample)` if true, else `model(sample)`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def stream_seed(name: str, *numbers: int) -> int:
    """A 64-bit seed for the random stream of this name; streams of different names are independent."""
    return int.from_bytes(hashlib.sha256(repr((name, *numbers)).encode()).digest()[:8], "little")


def seed_cpu_generators(seed: int) -> None:
    """Seed python's, numpy's and torch's CPU generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def cpu_rng_state() -> dict[str, Any]:
    """The states of python's, numpy's and torch's CPU generators, as `torch.load(weights_only=True)` can read them."""
    numpy_state: Any = np.random.get_state()
    kind, words, *rest = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(words.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }


def rng_state() -> dict[str, Any]:
    """`cpu_rng_state` and the state of the current CUDA device's generator, if there is one."""
    return cpu_rng_state() | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what `cpu_rng_state` or `rng_state` returned."""
    random.setstate(state["python"])
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


class SampleKey(NamedTuple):
    """One sample of one epoch."""

    epoch: int
    sample: int
    step: int = 0
    """The optimizer step that takes it, from 0."""


def only_sample(batch: Sequence[Any]) -> Any:
    """What the host's loops take of a batch, which has one item; unlike their lambda it reaches any worker process."""
    return batch[0]


class _Unreadable(NamedTuple):
    """In the place of a sample: why a worker process could not make it."""

    reason: str


class SeededSamples(Dataset[Any]):
    """Makes what a sample draws a function of (seed, epoch, index), and leaves the loop's own streams alone."""

    def __init__(self, dataset: EpochDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> Any:
        state = cpu_rng_state()
        seed_cpu_generators(stream_seed("sample", self.seed, key.epoch, key.sample))
        begin_step = getattr(self.dataset, "begin_step", None)
        if begin_step is not None:
            begin_step(key.step)
        try:
            return self.dataset[key.sample]
        except (ValueError, OSError) as error:
            if get_worker_info() is None:
                raise
            return _Unreadable(str(error))  # torch would make a traceback of it
        finally:
            set_rng_state(state)


class LoopLoader:
    """Takes the place of the host's DataLoader: one pass is the rest of the current epoch, or up to `end`.

    Args:
        loader: the host's; its dataset and number of workers are used.
        seed: of the run.
        end: how many samples this process takes in the whole run.
        process: this one, 0..processes - 1.
        processes: how many there are.
        device: where the samples' tensors go.
        on_pass: called at the start of each pass.
        accumulation: samples of this process in an optimizer step.

    Raises:
        ValueError: the dataset is empty; in a pass: a worker process could not read a sample.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        seed: int,
        end: int,
        process: int,
        processes: int,
        device: torch.device,
        on_pass: Callable[[], None],
        accumulation: int = 1,
    ) -> None:
        self.loader = loader
        self.samples = len(loader.dataset)  # type: ignore[arg-type]
        if self.samples == 0:
            raise ValueError("the dataset is empty; check --dataset_base_path and --dataset_metadata_path")
        self.seed = seed
        self.end = end
        self.process = process
        self.processes = processes
        self.device = device
        self.on_pass = on_pass
        self.accumulation = accumulation
        self.position = 0
        """How many samples this process has handed out, over all epochs; set it to go on from there."""
        self.current: SampleKey | None = None
        """The sample handed out last."""
        self.waited = 0.0
        """Seconds that the loop has waited for samples and their copies to the device; who reads it may set it to 0."""
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(stream_seed("epoch", self.seed, epoch))
        places = torch.randperm(self.samples, generator=generator).tolist()
        choose = getattr(self.loader.dataset, "epoch_indices", None)
        indices = range(self.samples) if choose is None else choose(generator)
        return [indices[place] for place in places]

    def _key(self, position: int) -> SampleKey:
        epoch, place = divmod(position * self.processes + self.process, self.samples)
        return SampleKey(epoch, self.order(epoch)[place], position // self.accumulation)

    def _end_of_pass(self) -> int:
        epoch = self.position * self.processes // self.samples
        end_of_epoch = -(-(epoch + 1) * self.samples // self.processes)  # rounded up: process 0 finishes the epoch
        return min(end_of_epoch, self.end)

    def __len__(self) -> int:
        return max(0, self._end_of_pass() - self.position)

    def __iter__(self) -> Iterator[Any]:
        self.on_pass()
        keys = [self._key(position) for position in range(self.position, self._end_of_pass())]
        if not keys:
            return
        samples: DataLoader[Any] = DataLoader(
            SeededSamples(self.loader.dataset, self.seed),  # type: ignore[arg-type]
            sampler=keys,
            collate_fn=only_sample,
            num_workers=self.loader.num_workers,
            generator=torch.Generator(),  # else starting a pass would draw from the global one
        )
        begun = time.perf_counter()
        for self.current, data in zip(keys, samples, strict=True):
            if self.position >= self.end:  # the run has been stopped
                break
            if isinstance(data, _Unreadable):
                raise ValueError(data.reason)
            self.position += 1
            data = send_to_device(data, self.device)
            self.waited += time.perf_counter() - begun
            yield data
            begun = time.perf_counter()

    def describe(self) -> str:
        """The sample handed out last, in words."""
        if self.current is None:
            return "no sample"
        describe = getattr(self.loader.dataset, "describe", None)
        name = "" if describe is None else f" ({describe(self.current.sample)})"
        return f"sample {self.current.sample}{name} of epoch {self.current.epoch}"
