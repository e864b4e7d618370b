"""How the scores of a head are cut into tiles of queries and blocks of keys."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class BlockGrid:
    """How the scores of one head are cut into tiles of queries and blocks of keys.

    Attributes:
        q_tokens: queries.
        kv_tokens: keys.
        block_rows: queries of one tile.
        block_kv: keys of one block.
        text: first text token and the token after the last, among queries and keys of
            joint attention; equal if there is no text.

    Raises:
        ValueError: sizes that are not positive, or text that is not inside the tokens.
    """

    q_tokens: int
    kv_tokens: int
    block_rows: int
    block_kv: int
    text: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        sizes = (self.q_tokens, self.kv_tokens, self.block_rows, self.block_kv)
        if min(sizes) < 1:
            raise ValueError(f"BlockGrid: expected positive sizes, found {self}")
        start, stop = self.text
        if not 0 <= start <= stop <= self.kv_tokens:
            raise ValueError(
                f"BlockGrid: expected text inside {self.kv_tokens} tokens, found "
                f"{self.text}"
            )
        if start < stop and self.q_tokens != self.kv_tokens:
            raise ValueError(
                "BlockGrid: expected as many queries as keys where text is among "
                f"both, found {self.q_tokens} and {self.kv_tokens}"
            )

    @property
    def q_tiles(self) -> int:
        """Tiles of queries; the last may be partial."""
        return -(-self.q_tokens // self.block_rows)

    @property
    def kv_blocks(self) -> int:
        """Blocks of keys; the last may be partial."""
        return -(-self.kv_tokens // self.block_kv)

    def lengths(self) -> np.ndarray:
        """Keys of each block: `[kv_blocks]` int32."""
        starts = np.arange(self.kv_blocks) * self.block_kv
        return np.minimum(self.kv_tokens - starts, self.block_kv).astype(np.int32)

    def always(self) -> np.ndarray:
        """What no choice may skip, `[q_tiles, kv_blocks]`.

        Rows that hold text queries attend to everything, and everything attends to
        blocks that hold text.
        """
        start, stop = self.text
        found = np.zeros((self.q_tiles, self.kv_blocks), bool)
        if start < stop:
            found[start // self.block_rows : -(-stop // self.block_rows)] = True
            found[:, start // self.block_kv : -(-stop // self.block_kv)] = True
        return found

    def near(self) -> np.ndarray:
        """Blocks that hold a tile's own tokens, or touch them: `[q_tiles, kv_blocks]`.

        Nothing, if queries and keys are not the same tokens.
        """
        if self.q_tokens != self.kv_tokens:
            return np.zeros((self.q_tiles, self.kv_blocks), bool)
        first = np.arange(self.q_tiles)[:, None] * self.block_rows
        last = np.minimum(first + self.block_rows, self.q_tokens) - 1
        block = np.arange(self.kv_blocks)
        below, above = first // self.block_kv - 1, last // self.block_kv + 1
        return (block >= below) & (block <= above)
