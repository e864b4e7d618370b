"""Reading the tokenizer files and golden ids. Needs NumPy only."""

import lzma
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "tokenizers"
MAX_LENGTH = 64
# Of these rows the ids themselves are stored, of all others a checksum.
SHOWN = slice(0, 120)


def names() -> list[str]:
    """The folders of which ids are stored, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem != "cleaned")


def unpack(name: str, folder: Path) -> Path:
    """Writes the files of a tokenizer folder.

    Args:
      name: one of `names()`.
      folder: where to make it.

    Returns:
      The folder of the tokenizer.
    """
    target = folder / name
    target.mkdir(parents=True)
    for file in sorted((FOLDER / name).iterdir()):
        content, written = file.read_bytes(), file.name
        if file.suffix == ".same":
            # The same large file as in the folder that is named.
            written = file.stem
            content = (FOLDER / content.decode() / written).read_bytes()
        if written.endswith(".xz"):
            written, content = written.removesuffix(".xz"), lzma.decompress(content)
        (target / written).write_bytes(content)
    return target


def golden(name: str) -> dict[str, np.ndarray]:
    """`checksums` of the ids of every prompt, `lengths`, and the `shown` ids."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)
