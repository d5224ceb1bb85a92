"""The processes of a run: what every rank does together with the others.

Each method is a collective call: all ranks make it, equally often and in the same order, or they wait for each other
for ever. With one process each is plain.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, gather_object


T = TypeVar("T")


class Ranks:
    """The ranks of the run that `accelerate` was launched with; plain numbers and objects go in and come out."""

    def __init__(self) -> None:
        state = PartialState()
        self.index: int = state.process_index
        self.count: int = state.num_processes
        self.is_main: bool = state.is_main_process
        self.is_local_main: bool = state.is_local_main_process
        self._device = state.device

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, of one shape, joined along the first dimension, `(ranks * n, ...)`."""
        gathered = gather(tensor.to(self._device))
        assert isinstance(gathered, torch.Tensor)
        return gathered

    def rows(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, a row each; counts and bytes are exact up to 2**53."""
        return self.gather(torch.tensor([numbers], dtype=torch.float64)).tolist()

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sum over all ranks of each number."""
        return [sum(column) for column in zip(*self.rows(numbers), strict=True)]

    def max(self, number: float) -> float:
        return max(row[0] for row in self.rows([number]))

    def any(self, flag: bool) -> bool:
        return any(row[0] for row in self.rows([flag]))

    def gather_objects(self, objects: list[T]) -> list[T]:
        """The lists of all ranks, joined in the order of ranks; they are pickled."""
        return gather_object(objects)

    def on_main(self, work: Callable[[], T]) -> T:
        """Do work on rank 0; its result, or its error, is every rank's: none waits for one that failed."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        if self.count > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def leave(self) -> None:
        """End the group that the processes are in, at the end of a script: its threads abort a process that ends under
        them."""
        PartialState().destroy_process_group()
