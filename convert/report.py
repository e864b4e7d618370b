"""What a conversion did, for its caller and for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.rules import collapse


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
      destination: the directory that was made.
      model_class: class name of the network.
      num_parameters: number of values.
      keys_read: tensors that became parameters.
      keys_quantized: how many of them are stored in a compressed format.
      keys_ignored: tensors that were ignored by name.
      source_dtypes: number of tensors by dtype.
      source_bytes: bytes of the source's files of weights.
      written_bytes: bytes of the new directory.
      seconds: wall time.
      packed: dialect and layout of weights that were packed already, who named it, and
        what the weights confirm of it; None if none were.
      loras: what was added to the weights, a record per file.
      left: what else the files hold (`Source.left`).
      unrotated: weights of sites that are stored without the rotation that was asked
        for, because it does not divide their width.
    """

    destination: Path
    model_class: str
    num_parameters: int
    keys_read: int
    keys_quantized: int
    keys_ignored: tuple[str, ...]
    source_dtypes: Mapping[str, int]
    source_bytes: int
    written_bytes: int
    seconds: float
    packed: Mapping[str, Any] | None = None
    loras: Sequence[Mapping[str, Any]] = ()
    left: Mapping[str, Any] = field(default_factory=dict)
    unrotated: tuple[str, ...] = ()

    def __str__(self) -> str:
        dtypes = ", ".join(f"{n} {d}" for d, n in sorted(self.source_dtypes.items()))
        lines = [
            f"{self.model_class}: {self.num_parameters:,} parameters from "
            f"{self.keys_read} tensors ({dtypes}); {self.keys_quantized} now quantized",
            f"{self.source_bytes:,} bytes read, {self.written_bytes:,} written "
            f"({self.written_bytes / self.source_bytes:.1%}) in {self.seconds:.1f} s: "
            f"{self.destination}",
        ]
        if self.keys_ignored:
            lines.append("ignored by name: " + ", ".join(collapse(self.keys_ignored)))
        if self.packed is not None:
            lines.append(_said_of_packed(self.packed))
        lines += [
            f"LoRA {lora['file']} at strength {lora['strength']:g}: "
            f"{lora['parameters_changed']} parameters changed, all "
            f"{lora['keys_read']} keys used"
            for lora in self.loras
        ]
        if others := self.left.get("others"):
            said = ", ".join(f"{kind} ({n} tensors)" for kind, n in others.items())
            lines.append(f"not taken, of other components: {said}")
        for name, record in self.left.get("state_dicts", {}).items():
            rest = ", ".join(f"{n} ({count})" for n, count in record["left"].items())
            lines.append(
                f"{name}: took {record['taken'] or 'the top level'}, left "
                f"{rest or 'nothing'}"
            )
        if self.unrotated:
            lines.append(
                "stored without rotation, which does not divide their width: "
                + ", ".join(self.unrotated)
            )
        return "\n".join(lines)


def _said_of_packed(facts: Mapping[str, Any]) -> str:
    """What is known of the layout of packed weights, and what is only believed."""
    text = (
        f"packed weights: read as {facts['dialect']}, named by {facts['named_by']} "
        f"({facts['layout']}); the weights themselves confirm: "
        f"{', '.join(facts['confirmed']) or 'nothing'}"
    )
    if facts["unconfirmed"] and "reference_error" not in facts:
        text += f"; they do not tell: {', '.join(facts['unconfirmed'])}"
        if facts["named_by"] == "the caller":
            text += " (a wrong dialect would look the same: give --reference)"
    if "reference_error" in facts:
        text += f"; relative error against the reference: {facts['reference_error']}"
    return text


__all__ = ["ConversionReport"]
