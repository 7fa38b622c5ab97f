"""Gives each process of a machine a card of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def take_card(local_rank: int) -> None:
    """Make "cuda" mean this process's own card, for whatever it loads; nothing where the machine has no such card."""
    if torch.cuda.is_available() and local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)


def own_card(wanted: torch.device, local_rank: int, local_count: int, cards: int) -> int:
    """Return the number of this process's card.

    ValueError where one card is named for several processes of a machine, or they are more than its cards.
    """
    if wanted.index is not None and local_count > 1:
        raise ValueError(
            f"device is '{wanted}', and {local_count} processes of this machine would share that card; "
            "use cuda, which gives each process its own"
        )
    if cards < local_count:
        raise ValueError(
            f"{local_count} processes on a machine with {cards} CUDA devices; start at most that many (torchrun "
            f"--nproc-per-node {cards}), or use device cpu"
        )
    return local_rank if wanted.index is None else wanted.index


def check_cards(cards: Sequence[str]) -> None:
    """Raise ValueError where two processes have the same card. cards: the identity of each process's."""
    for rank, card in enumerate(cards):
        first = cards.index(card)
        if first < rank:
            raise ValueError(
                f"ranks {first} and {rank} have the same card ({card}); start all processes of a machine with one "
                "torchrun, and give each its own card in CUDA_VISIBLE_DEVICES"
            )
