"""Diffusers directories with a list of checksums, such as the ones that we write."""

from pathlib import Path

from convert.errors import ConversionError
from sixbit_jax import checksums


def check_listed(directory: Path) -> int | None:
    """Holds the files of a checkpoint against its list of checksums.

    Args:
      directory: that of the network; the list may lie in the root above it.

    Returns:
      The bytes that were checked; None if there is no list.

    Raises:
      ConversionError: files are missing or changed (lists all), or the list is damaged.
    """
    roots = [directory]
    if (directory.parent / "model_index.json").is_file():
        roots.append(directory.parent)
    for root in roots:
        if not (root / checksums.MANIFEST).exists():
            continue
        try:
            problems = checksums.damaged(root, kind=checksums.DIFFUSERS)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        if problems:
            raise ConversionError(
                "\n  ".join(
                    [
                        f"{root}: not as it was written (without "
                        f"{checksums.MANIFEST} its files are taken as they are):",
                        *problems,
                    ]
                )
            )
        names = checksums.read_manifest(root, kind=checksums.DIFFUSERS)
        return sum((root / name).stat().st_size for name in names)
    return None


__all__ = ["check_listed"]
