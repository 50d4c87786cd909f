"""Training step as one CUDA graph: forward pass, loss and backward pass."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Results = tuple[Tensor, ...]
#: maps images, targets and the number of accumulated batches to results; its only effect on the
#: network is gradients
Step = Callable[[Tensor, Tensor, int], Results]


@dataclass
class _Graph:
    images: Tensor
    targets: Tensor
    results: Results
    trained: list[nn.Parameter]
    gradients: list[Tensor | None]
    replay: Callable[[], None]


class CapturedStep:
    """Captures a step for each kind of batch, and replays it for later batches.

    The kind is the shape and dtype of the batch, the trained parameters, and whether the batch
    begins an optimizer step or adds to its gradients. A replay copies the batch to static tensors.
    Gradients and results are static tensors too: the next replay overwrites them.

    The first batch of a kind also compiles and tunes kernels, in steps whose effect on buffers and
    random generators is undone. So training gives the same numbers as without graphs. Parameters
    and buffers must keep their addresses, and the step must not wait for the GPU.
    """

    #: steps before a capture, as in PyTorch's documentation
    WARM_UP = 3

    def __init__(self, network: nn.Module, step: Step) -> None:
        self._network = network
        self._step = step
        self._parameters: list[nn.Parameter] = []
        self._graphs: dict[Hashable, _Graph] = {}
        self._begun: Hashable = None  # kind of the optimizer step's first batch
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # memory of all graphs, because they never run at the same time

    @property
    def captures(self) -> int:
        """Number of captured graphs."""
        return len(self._graphs)

    def __call__(self, images: Tensor, targets: Tensor, batches: int, begins: bool) -> Results:
        """Compute the step and return its results.

        With `begins` it overwrites the gradients, otherwise it adds to them. `batches` is the
        number of accumulated batches.
        """
        if not self._graphs:
            self._parameters = list(self._network.parameters())
        trained = tuple(p.requires_grad for p in self._parameters)
        kind = images.shape, images.dtype, targets.shape, targets.dtype, batches, trained
        # A run that was resumed within an optimizer step has no gradients yet.
        begins = begins or self._begun != kind
        self._begun = kind
        graph = self._graphs.get((kind, begins))
        if graph is None:
            gradients = None if begins else self._graphs[kind, True].gradients
            graph = self._capture(images, targets, batches, gradients)
            self._graphs[kind, begins] = graph
        graph.images.copy_(images)
        graph.targets.copy_(targets)
        graph.replay()
        for parameter, gradient in zip(graph.trained, graph.gradients, strict=True):
            parameter.grad = gradient
        return graph.results

    def _capture(
        self, images: Tensor, targets: Tensor, batches: int, gradients: list[Tensor | None] | None
    ) -> _Graph:
        images, targets = images.clone(), targets.clone()
        trained = [p for p in self._parameters if p.requires_grad]
        buffers = list(self._network.buffers())
        before = [buffer.clone() for buffer in buffers]

        def warm_up() -> None:
            for _ in range(self.WARM_UP):
                for parameter in trained:
                    parameter.grad = None
                self._step(images, targets, batches)

        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            self._warm_up(warm_up)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        # The backward pass adds to an existing gradient, or else writes a new one.
        for parameter, gradient in zip(trained, gradients or [None] * len(trained), strict=True):
            parameter.grad = gradient
        results, replay = self._record(lambda: self._step(images, targets, batches))
        written = [parameter.grad for parameter in trained]
        return _Graph(images, targets, results, trained, written, replay)

    def _warm_up(self, work: Callable[[], None]) -> None:
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        # On the capture's stream, because autograd remembers the stream of a parameter.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def _record(self, work: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        """Capture `work`; the returned function runs it on the GPU."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the writer of checkpoints, may use the GPU at the same time.
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            results = work()
        return results, graph.replay
