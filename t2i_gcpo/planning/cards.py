"""The cards that a plan knows, with the numbers of their data sheets.

Each names the document that a number is from. They were compared with tables that quote these documents; the documents
themselves were not at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9
#: Bytes of a card that a run cannot use: CUDA's context, the workspaces of its libraries, and what the allocator loses
#: to fragments. A choice of this repository, on the safe side.
RESERVED = 2 * GB
#: The share of the peak rate that matrix products reach in training; 2204.02311 (PaLM, table 3) reports 46.2 %.
MATRIX_SHARE = 0.45


@dataclass(frozen=True)
class Card:
    """Holds the numbers of a card."""

    name: str
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes a second of its memory."""
    rate: float
    """FLOPs a second in bfloat16, dense, summed in fp32."""
    source: str

    @property
    def usable(self) -> int:
        """Return the bytes that a run can use."""
        return self.memory - RESERVED

    def seconds(self, flops: float, moved: float) -> float:
        """Return the least time for so many FLOPs and bytes: whichever of the two takes longer."""
        return max(flops / (self.rate * MATRIX_SHARE), moved / self.bandwidth)


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card("H100", 80 * GB, 3.35e12, 989e12, "NVIDIA H100 data sheet, SXM5: 80 GB, 3.35 TB/s, 1,979 with sparsity"),
        Card("H200", 141 * GB, 4.8e12, 989e12, "NVIDIA H200 data sheet, SXM: 141 GB, 4.8 TB/s, 1,979 with sparsity"),
        Card("A100", 80 * GB, 2.039e12, 312e12, "NVIDIA A100 data sheet, SXM4 80 GB: 2,039 GB/s, 312 TFLOPS"),
        Card("RTX4090", 24 * GB, 1.008e12, 165.2e12, "NVIDIA Ada GPU architecture whitepaper, table 2"),
    )
}


def card(name: str) -> Card:
    """Return the card of a name, whatever its case and blanks. ValueError lists those that there are."""
    known = {key.lower(): value for key, value in CARDS.items()}
    wanted = name.lower().replace(" ", "").replace("-", "")
    if wanted not in known:
        raise ValueError(f"there is no card {name!r}; write one of {', '.join(CARDS)}")
    return known[wanted]
