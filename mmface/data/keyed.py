"""Random draws and data order that depend on (seed, step, place in the global batch) alone.

Neither the number of processes, nor the micro-batch, nor a resume changes which item stands at
which place of which step, or what is drawn for it.
"""

from collections.abc import Iterator
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


class KeyedDataset(Dataset[dict[str, Any]]):
    """Gives each sample the generator of its (seed, step, place)."""

    def __init__(self, samples: Samples, seed: int) -> None:
        """Wrap samples with the run's seed."""
        self.samples = samples
        self.seed = seed

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample that stands at a place of a step."""
        step, place, item = key
        return self.samples.sample(item, keyed_generator(self.seed, step, place))


class GlobalBatchSampler(Sampler[list[Key]]):
    """The micro-batches of one process, in order, from one step up to another.

    The items pass in a new random order each epoch; an epoch's end may fall inside a batch. The
    places of a global batch go round the processes, then round the micro-batches.
    """

    def __init__(
        self,
        num_items: int,
        global_batch_size: int,
        micro_batch_size: int,
        steps: range,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        """Lay out the batches of `steps` for one process.

        Args:
            num_items: items in an epoch.
            global_batch_size: samples in one step, over all processes.
            micro_batch_size: samples in one batch of one process.
            steps: the steps to give batches for.
            seed: seed of the items' order.
            process_index: this process's number.
            num_processes: how many processes share a global batch.

        Raises:
            ValueError: if the global batch is not a whole number of micro-batches per process.
        """
        super().__init__()
        if num_items < 1:
            raise ValueError("there are no items to train on")
        if global_batch_size % (micro_batch_size * num_processes):
            raise ValueError(
                f"a global batch of {global_batch_size} does not divide into micro-batches of "
                f"{micro_batch_size} on {num_processes} process(es); change one of them"
            )
        self.num_items = num_items
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.steps = steps
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self._epoch = -1
        self._order: list[int] = []

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
            places = range(self.process_index, self.global_batch_size, self.num_processes)
            keys = [(step, place, self._item(step, place)) for place in places]
            for first in range(0, len(keys), self.micro_batch_size):
                yield keys[first : first + self.micro_batch_size]

    def _item(self, step: int, place: int) -> int:
        epoch, position = divmod(step * self.global_batch_size + place, self.num_items)
        if epoch != self._epoch:
            generator = keyed_generator(self.seed, epoch)
            self._epoch = epoch
            self._order = torch.randperm(self.num_items, generator=generator).tolist()
        return self._order[position]
