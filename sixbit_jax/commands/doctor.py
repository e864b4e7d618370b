"""`sixbit doctor`: what each operation runs as on this device, and why."""

import argparse
import json
from typing import Any

DESCRIPTION = (
    "Says which implementation of each GPU operation runs on this device, why nothing "
    "faster does, and what would help. Traces the operations and runs none of them."
)
EPILOG = """\
examples:
  sixbit doctor
  sixbit doctor --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON, not tables")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    facts = examine()
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    _print(facts)
    return 0


def examine() -> dict[str, Any]:
    """The device and what each operation runs as, as JSON values.

    Returns:
      `device`: its name, and for a GPU its compute capability, multiprocessors and
      memory in bytes (`None` where nobody says). `operations`: for each, its
      `implementation`, whether that is the plain `definition`, and the reasons of those
      that are `refused`. `help`: commands that would make something faster.
    """
    from pallas_kernels import dispatch
    from pallas_kernels.catalogue import probes

    operations, advice = [], []
    for name, probe in probes().items():
        with dispatch.choices() as made:
            probe()
        choice = next(c for c in made if c.operation == name)
        operations.append(
            {
                "operation": name,
                "implementation": choice.implementation,
                "definition": choice.definition,
                "refused": dict(choice.refusals),
            }
        )
        on_gpu = dispatch.compute_capability() is not None
        if on_gpu and choice.install and choice.install not in advice:
            advice.append(choice.install)
    return {"device": _device(), "operations": operations, "help": advice}


def _device() -> dict[str, Any]:
    import jax

    from pallas_kernels import dispatch
    from sixbit_jax.pipelines.memory import device_memory

    capability = dispatch.compute_capability()
    facts: dict[str, Any] = {"name": jax.devices()[0].device_kind}
    if capability is None:
        return facts
    return facts | {
        "compute_capability": "{}.{}".format(*capability),
        "multiprocessors": dispatch.multiprocessors(),
        "memory_bytes": device_memory(),
    }


def _print(facts: dict[str, Any]) -> None:
    from sixbit_jax.report.tables import byte_size, facts_table, print_table, table

    device = facts["device"]
    shown = {"device": device["name"]}
    if "compute_capability" in device:
        shown["compute capability"] = device["compute_capability"]
        shown["multiprocessors"] = str(device["multiprocessors"])
        if device["memory_bytes"] is not None:
            shown["memory for programs"] = byte_size(device["memory_bytes"])
    print_table(facts_table(shown))
    rows, reasons = [], {}
    for entry in facts["operations"]:
        name = entry["implementation"] or "nothing"
        slow = entry["definition"] and "compute_capability" in device
        refused = ", ".join(entry["refused"])
        rows.append([entry["operation"], name + (" (slow)" if slow else ""), refused])
        for refusal in entry["refused"].items():
            reasons.setdefault(refusal, []).append(entry["operation"])
    result = table(["operation", "runs as", "not as"], rows)
    for column in result.columns:
        column.justify = "left"
    print_table(result)
    for (name, reason), operations in reasons.items():
        everywhere = len(operations) == len(rows)
        of = "" if everywhere else f" ({', '.join(operations)})"
        print(f"not {name}{of}: {reason}")
    for command in facts["help"]:
        print(f"faster with: {command}")
