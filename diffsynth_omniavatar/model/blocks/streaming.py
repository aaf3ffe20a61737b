"""Tensors that are offloaded to CPU memory or spread over GPUs, and brought to a GPU while it computes, one step before
they are used.

On a CUDA device the copies run on a stream of their own, from and to pinned memory. On a CPU there is nothing to gain;
the classes work there for the sake of tests.
"""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNMENT = 256
"""Bytes at whose multiples tensors begin in a joint buffer, as cuBLAS likes them."""


class _Copies:
    """A stream for copies between the memories of host and device, beside the one that computes."""

    AHEAD = 2
    """Steps that the process may be ahead of the device: memory that a stream is to use later cannot be given out
    anew before that is done, and the process would be ahead by whole passes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pinned = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self.pinned else None
        self._steps: deque[Any] = deque()

    @contextmanager
    def behind_computation(self) -> Iterator[None]:
        """Within it, copies start when what the device was told so far is done."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield

    def done(self) -> Any:
        """An event: the copies up to here."""
        return None if self.stream is None else self.stream.record_event()

    def await_copies(self, event: Any) -> None:
        """Let the computing stream wait for the event."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def step(self) -> None:
        """Count a step of the process; wait for the device where it is too far ahead."""
        if self.stream is None:
            return
        self._steps.append(self.stream.record_event())
        if len(self._steps) > self.AHEAD:
            self._steps.popleft().synchronize()


class Waiting:
    """A tensor in CPU memory, or on its way back."""

    def __init__(self, host: Tensor) -> None:
        self.host: Tensor | None = host
        self.arriving: Tensor | None = None
        self.event: Any = None


class MainMemory:
    """Takes tensors off the device between forward and backward pass; the last one put there is fetched first."""

    def __init__(self, device: torch.device) -> None:
        self._copies = _Copies(device)
        self._spare: dict[Any, list[Tensor]] = defaultdict(list)
        self._waiting: list[weakref.ref[Waiting]] = []

    def put(self, tensor: Tensor) -> Waiting:
        """Begin to copy a tensor, which the caller then drops."""
        copies, spare = self._copies, self._spare[tensor.shape, tensor.dtype]
        host = spare.pop() if spare else torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=copies.pinned)
        with copies.behind_computation():
            host.copy_(tensor, non_blocking=True)
        if copies.stream is not None:
            tensor.record_stream(copies.stream)
        copies.step()
        waiting = Waiting(host)
        self._waiting = [ref for ref in self._waiting if ref() is not None]  # of passes that had no backward
        self._waiting.append(weakref.ref(waiting))
        return waiting

    def take(self, waiting: Waiting) -> Tensor:
        """The tensor on the device, once; the one put before it is fetched meanwhile."""
        self._fetch(waiting)
        self._waiting = [ref for ref in self._waiting if ref() not in (None, waiting)]
        self._copies.await_copies(waiting.event)
        before = self._waiting[-1]() if self._waiting else None
        if before is not None:
            self._fetch(before)
        self._copies.step()
        tensor, waiting.arriving = waiting.arriving, None
        assert tensor is not None, "taken twice"
        if self._copies.stream is not None:
            tensor.record_stream(torch.cuda.current_stream(self._copies.device))
        return tensor

    def _fetch(self, waiting: Waiting) -> None:
        if waiting.host is None:
            return
        with self._copies.behind_computation():
            waiting.arriving = waiting.host.to(self._copies.device, non_blocking=True, copy=True)
            waiting.event = self._copies.done()
        self._spare[waiting.host.shape, waiting.host.dtype].append(waiting.host)  # copies keep their order
        waiting.host = None


def _pin(owner: Any, buffers: Sequence[Tensor]) -> None:
    """Let the device read the buffers directly as long as their owner lives.

    Torch's own pinned memory comes in powers of two, up to twice as much.
    """
    runtime = torch.cuda.cudart()
    for buffer in buffers:
        torch.cuda.check_error(runtime.cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0))

    def release(buffers: Sequence[Tensor]) -> None:
        for buffer in buffers:
            runtime.cudaHostUnregister(buffer.data_ptr())

    weakref.finalize(owner, release, list(buffers)).atexit = False


def stream_modules(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Offload the parameters of modules that run one after the other, without gradients."""
    streamed = StreamedWeights([list(module.parameters()) for module in modules], device, cyclic=True)

    def bring(index: int, module: nn.Module, _inputs: Any) -> None:
        values = streamed.fetch(index)
        for parameter in module.parameters():
            parameter.data = values[id(parameter)]

    for index, module in enumerate(modules):
        module.register_forward_pre_hook(functools.partial(bring, index))


class StreamedWeights:
    """Frozen weights of equal layers that run one after the other, forwards and then backwards.

    The parameters become empty; `fetch` gives their values. On the device are those of two layers.

    Args:
        layers: the parameters or buffers of each layer, none of which trains.
        device: where they are needed.
        cyclic: the layers run forwards only, and then from the first one again.
    """

    def __init__(self, layers: Sequence[Iterable[Tensor]], device: torch.device, cyclic: bool = False) -> None:
        self._copies, self._cyclic = _Copies(device), cyclic
        self._parameters = [list(layer) for layer in layers]
        self._places: list[list[tuple[int, int, torch.Size, torch.dtype]]] = []
        self._sizes: list[int] = []
        self._kept: list[Tensor] = []
        for index, parameters in enumerate(self._parameters):
            places, end = [], 0
            for parameter in parameters:
                size = parameter.numel() * parameter.element_size()
                places.append((end, end + size, parameter.shape, parameter.dtype))
                end += -(-size // ALIGNMENT) * ALIGNMENT
            self._places.append(places)
            self._sizes.append(end)
            packed = torch.empty(end, dtype=torch.uint8)
            for parameter, view in zip(parameters, self._views(index, packed), strict=True):
                view.copy_(parameter.data)
                parameter.data = torch.empty(0, dtype=parameter.dtype, device=device)
            self._kept.append(self._keep(packed, device))
        if self._kept[0].device.type == "cpu" and self._copies.pinned:
            _pin(self, self._kept)
        self._buffers = [torch.empty(self.layer_bytes, dtype=torch.uint8, device=device) for _ in range(2)]
        self._there: dict[int, tuple[int, Any]] = {}
        """Layer -> its buffer, and the event of its arrival."""
        self._last = -1

    @property
    def layer_bytes(self) -> int:
        """Bytes of the largest layer."""
        return max(self._sizes)

    def fetch(self, index: int) -> dict[int, Tensor]:
        """The values of a layer's parameters, by the parameters' `id`, for computing until the next call; the
        following layer is sent for.
        """
        backwards = not self._cyclic and (index < self._last or (index == self._last and index > 0))
        following = index - 1 if backwards else index + 1
        if self._cyclic:
            following %= len(self._kept)
        wanted = [place for place in (index, following) if 0 <= place < len(self._kept)]
        self._there = {place: entry for place, entry in self._there.items() if place in wanted}
        for place in wanted:
            if place not in self._there:
                self._send_for(place)
        self._last = index
        buffer, event = self._there[index]
        self._copies.await_copies(event)
        views = self._views(index, self._buffers[buffer])
        return {id(p): view for p, view in zip(self._parameters[index], views, strict=True)}

    def _send_for(self, index: int) -> None:
        taken = {buffer for buffer, _ in self._there.values()}
        free = next(buffer for buffer in range(2) if buffer not in taken)
        with self._copies.behind_computation():  # which used the buffer until now
            self._bring(self._kept[index], self._buffers[free])
            self._there[index] = free, self._copies.done()

    def _keep(self, packed: Tensor, device: torch.device) -> Tensor:
        """What stays of a layer's bytes in CPU memory."""
        return packed

    def _bring(self, kept: Tensor, buffer: Tensor) -> None:
        """Put a layer's bytes into the beginning of a buffer on the device."""
        buffer[: len(kept)].copy_(kept, non_blocking=True)

    def _views(self, index: int, buffer: Tensor) -> list[Tensor]:
        return [buffer[a:b].view(dtype).view(shape).detach() for a, b, shape, dtype in self._places[index]]


class ShardedWeights(StreamedWeights):
    """Weights of which each process keeps a part on its device; they are put together just before they are used.

    Args:
        layers, device, cyclic: as for `StreamedWeights`; the same in all processes.
    """

    def __init__(self, layers: Sequence[Iterable[Tensor]], device: torch.device, cyclic: bool = False) -> None:
        self._group: Any = dist.new_group()  # apart from attention's exchanges, which run at the same time
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        super().__init__(layers, device, cyclic)

    @property
    def layer_bytes(self) -> int:
        """Bytes of the largest layer, in equal parts."""
        return self._part(super().layer_bytes) * self._ranks

    def _part(self, size: int) -> int:
        return -(-size // self._ranks)

    def _keep(self, packed: Tensor, device: torch.device) -> Tensor:
        size = self._part(len(packed))
        own = packed[self._rank * size : (self._rank + 1) * size]
        return F.pad(own, (0, size - len(own))).to(device)

    def _bring(self, kept: Tensor, buffer: Tensor) -> None:
        dist.all_gather_into_tensor(buffer[: len(kept) * self._ranks], kept, group=self._group)
