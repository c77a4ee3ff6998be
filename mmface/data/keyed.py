"""Random draws and data order that depend on (seed, step, place in the global batch) alone.

Neither the number of processes, nor the micro-batch, nor a resume changes which item stands at
which place of which step, or what is drawn for it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

Key = tuple[int, int, int]
"""(step, place in the global batch, item number)."""


def keyed_generator(*key: int) -> torch.Generator:
    """A CPU generator whose stream depends on the given non-negative numbers alone."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@runtime_checkable
class Samples(Protocol):
    """A set of items, each of which yields a sample once it is given its random draws."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def sample(self, item: int, generator: torch.Generator) -> dict[str, Any]:
        """One training sample of an item; every random choice is drawn from the generator."""
        ...


class KeyedDataset(Dataset[Any]):
    """Gives each sample the generator of its (seed, step, place)."""

    def __init__(self, samples: Samples, seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def __getitem__(self, key: Key) -> Any:
        """The sample that stands at a place of a step."""
        step, place, item = key
        return self.samples.sample(item, keyed_generator(self.seed, step, place))


@runtime_checkable
class ItemOrder(Protocol):
    """Which item stands where in a run."""

    def item(self, position: int) -> int:
        """The item at a position, counted over the places of all steps from 0."""
        ...


class ShuffledEpochs:
    """Every item once an epoch, each epoch in a new random order."""

    def __init__(self, num_items: int, *seed: int) -> None:
        """Order `num_items` items, at least one, by a seed of one number or several."""
        if num_items < 1:
            raise ValueError("there are no items to train on")
        self.num_items = num_items
        self.seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def item(self, position: int) -> int:
        """The item at a position; an epoch's end may fall inside a batch."""
        epoch, position = divmod(position, self.num_items)
        if epoch != self._epoch:
            first, *others = self.seed
            generator = keyed_generator(first, epoch, *others)
            self._epoch = epoch
            self._order = torch.randperm(self.num_items, generator=generator).tolist()
        return self._order[position]


class GlobalBatchSampler(Sampler[list[Key]]):
    """The micro-batches of one process, in order, for a range of steps.

    The places of a global batch go round the processes, then fill the micro-batches.
    """

    def __init__(
        self,
        order: ItemOrder,
        global_batch_size: int,
        micro_batch_size: int,
        steps: range,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        """Lay out the batches of `steps` for one process.

        The global batch, of all processes in a step, must be a whole number of micro-batches per
        process (ValueError).
        """
        super().__init__()
        if global_batch_size % (micro_batch_size * num_processes):
            raise ValueError(
                f"a global batch of {global_batch_size} does not divide into micro-batches of "
                f"{micro_batch_size} on {num_processes} process(es); change one of them"
            )
        self.order = order
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.steps = steps
        self.process_index = process_index
        self.num_processes = num_processes

    @property
    def micro_batches_per_step(self) -> int:
        """How many micro-batches this process accumulates in one optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.num_processes)

    def __len__(self) -> int:
        """Number of micro-batches over all steps."""
        return len(self.steps) * self.micro_batches_per_step

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield one list of keys for each micro-batch."""
        for step in self.steps:
            first = step * self.global_batch_size
            for places in self.micro_batches(step):
                yield [(step, place, self.order.item(first + place)) for place in places]

    def micro_batches(self, step: int) -> Iterator[Sequence[int]]:
        """Yield the places of each micro-batch of this process in a step."""
        own = range(self.process_index, self.global_batch_size, self.num_processes)
        for first in range(0, len(own), self.micro_batch_size):
            yield own[first : first + self.micro_batch_size]
