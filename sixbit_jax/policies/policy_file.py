"""A calibrated policy as a small JSON file, tied to the model it was made for."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from sixbit_jax import files
from sixbit_jax.hardware import fast_stable_route
from sixbit_jax.policies import (
    BlockGrid,
    ErrorPredictor,
    Policy,
    chain,
    delta_gbs,
    dmpq,
    int8_attention,
    pdr,
    sparse_attention,
    tdc,
)
from sixbit_jax.policies._common import checked_count
from sixbit_jax.policies.parameters import (
    MOST_BLOCKS,
    REQUIRED,
    Flag,
    Kind,
    OrNone,
    Parameter,
    Text,
    Whole,
    are_names,
    parameters,
)
from sixbit_jax.reading.json_file import read_json_object
from sixbit_jax.reading.messages import bounded, brief, named, several
from sixbit_jax.routes import Route

FORMAT = "sixbit-policy"
VERSION = 1


class Part(NamedTuple):
    """A policy as a part of a file.

    Attributes:
      policy: the function that makes it; it declares types, ranges and defaults.
      entries: name in the file and parameter of the policy.
      switch: the entry that is null, or false, where the part is absent.
    """

    policy: Callable[..., Policy]
    entries: Mapping[str, str]
    switch: str


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


PARTS = (
    Part(
        dmpq,
        _same("predictor", "threshold", "importance", "residual", "final_int8"),
        "predictor",
    ),
    Part(delta_gbs, _same("delta", "low", "high"), "delta"),
    Part(
        tdc,
        _same("tau", "max_skips", "warmup", "together", "shared")
        | {"skip_blocks": "blocks"},
        "tau",
    ),
    Part(pdr, _same("outlier_ratio", "scope", "refresh_int8"), "purify"),
    Part(int8_attention, {"attention_max_gamma": "max_gamma"}, "attention_max_gamma"),
    Part(
        sparse_attention,
        {f"sparse_{name}": name for name in parameters(sparse_attention)},
        "sparse_way",
    ),
)
"""All that a file may hold, in the order of the chain."""


def _entries() -> dict[str, Parameter]:
    """Every entry of `PARTS`: what it may hold in a file, and its default there."""
    found: dict[str, Parameter] = {"purify": Parameter(Flag(), True)}
    for part in PARTS:
        for entry, name in part.entries.items():
            kind, default = parameters(part.policy)[name]
            # What has no default belongs to a part that may be absent.
            absent = default is REQUIRED or entry == part.switch
            default = None if absent else kind.to_file(default)
            if default is None and not isinstance(kind, OrNone):
                kind = OrNone(kind)
            found[entry] = Parameter(kind, default)
    return found


ENTRIES: Mapping[str, Parameter] = _entries()
_OF_THE_MODEL: Mapping[str, Kind] = {
    "model_class": Text(),
    "config_hash": Text(),
    "sites": Kind("a list of different words", are_names),
    "num_blocks": Whole(1, MOST_BLOCKS),
}
_NOTES = Kind("an object", lambda value: isinstance(value, dict))
_Entries = dataclasses.make_dataclass(
    "_Entries",
    [
        (name, Any, dataclasses.field(default=entry.default))
        for name, entry in ENTRIES.items()
    ],
    frozen=True,
    kw_only=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyFile(_Entries):
    """DMPQ or delta-GBS, TDC, PDR, 8-bit and sparse attention; each may be absent.

    Beside the attributes here it has those of `ENTRIES`: `threshold`, `tau`,
    `outlier_ratio` and so on, as a file holds them; types, ranges and defaults are
    those of the policies. A limit that is None is no limit; `purify` says whether `pdr`
    is in the policy.

    Attributes:
      model_class: class name of the model, as in diffusers' config.json.
      config_hash: `config_hash` of its configuration.
      sites, num_blocks: what a plan of this model covers.
      calibration: how it was made, free JSON (targets, correlations, runs).
    """

    model_class: str
    config_hash: str
    sites: tuple[str, ...]
    num_blocks: int
    calibration: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(self.sites))
        for name in ("skip_blocks", "sparse_dense_blocks"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if (self.predictor is None) != (self.threshold is None):
            raise ValueError(
                "a policy file needs a predictor and a threshold, or neither; found "
                f"threshold {self.threshold} and predictor {self.predictor}"
            )
        routes = [route.name for route in Route]
        if unknown := [name for name in (self.low, self.high) if name not in routes]:
            raise ValueError(
                f"policy file: expected routes of {', '.join(routes)}; found {unknown}"
            )
        if self.delta is not None and self.predictor is not None:
            raise ValueError(
                "policy file: expected a predictor (DMPQ) or a delta (delta-GBS), "
                "found both"
            )
        checked_count("policy file", "num_blocks", self.num_blocks, low=1)
        # Building it is the check of all other numbers.
        self.policy().init(
            BlockGrid(
                self.num_blocks,
                self.sites,
                np.ones((self.num_blocks, len(self.sites))),
            )
        )

    @classmethod
    def for_model(cls, model: Any, **numbers: Any) -> "PolicyFile":
        """A file for a model (`class_name`, `config`, `sites`, `num_blocks`)."""
        return cls(
            model_class=model.class_name,
            config_hash=config_hash(model.config),
            sites=tuple(model.sites),
            num_blocks=model.num_blocks,
            **numbers,
        )

    def policy(self, *, stable_route: Route = Route.NVFP4) -> Policy:
        """The chain of all that is in it, less what is absent.

        chain(dmpq or delta_gbs, tdc, pdr, int8_attention, sparse_attention)

        Args:
          stable_route: of `dmpq`; the file was calibrated for NVFP4.
        """
        made = []
        for part in PARTS:
            if getattr(self, part.switch) in (None, False):
                continue
            declared = parameters(part.policy)
            arguments = {
                name: declared[name].kind.from_file(getattr(self, entry))
                for entry, name in part.entries.items()
            }
            if part.policy is dmpq:
                arguments["stable_route"] = stable_route
            made.append(part.policy(**arguments))
        return chain(*made)

    def check_fits(self, model: Any) -> None:
        """Checks that it was made for this model, or for a grid of this shape.

        Args:
          model: a model, or a `BlockGrid` (which knows neither class nor
            configuration).

        Raises:
          ValueError: another class, configuration, number of blocks or sites; lists
            all differences.
        """
        found: dict[str, Any] = {
            "blocks": model.num_blocks,
            "sites": tuple(model.sites),
        }
        expected: dict[str, Any] = {"blocks": self.num_blocks, "sites": self.sites}
        if not isinstance(model, BlockGrid):
            found |= {
                "class": model.class_name,
                "configuration": config_hash(model.config),
            }
            expected |= {
                "class": self.model_class,
                "configuration": self.config_hash,
            }
        different = [
            f"{name}: the policy is for {expected[name]}, the model has {found[name]}"
            for name in expected
            if expected[name] != found[name]
        ]
        if different:
            raise ValueError(
                "the policy was calibrated for another model\n  "
                + "\n  ".join(different)
            )


def config_hash(config: Any) -> str:
    """SHA-256 of a model configuration (a dataclass or a mapping), as hex digits."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    text = json.dumps(dict(values), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def save_policy(policy: PolicyFile, path: str | os.PathLike) -> None:
    """Writes a policy file; complete or not at all.

    Raises:
      ValueError: a number in it is NaN or infinite, which JSON does not know.
    """
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for field in dataclasses.fields(policy):
        content[field.name] = getattr(policy, field.name)
    if policy.predictor is not None:
        # shortest decimals that give the same float32 again
        content["predictor"] = {
            name: [[float(str(value)) for value in row] for row in table]
            for name, table in (
                ("alpha", policy.predictor.alpha),
                ("beta", policy.predictor.beta),
            )
        } | {"sites": policy.predictor.sites}
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"{path}: a policy holds finite numbers only, found a NaN or an infinity "
            "in its calibration notes"
        ) from error
    files.write_text(path, text + "\n")


def load_policy(path: str | os.PathLike) -> PolicyFile:
    """Reads a policy file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not a policy file, another version, missing or unknown entries, NaN,
        a predictor without one of the sites, numbers out of range.
    """
    try:
        content = read_json_object(path)
    except ValueError as error:
        found = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a policy file: {found}") from error
    if content.get("format") != FORMAT:
        raise ValueError(f'{path}: not a policy file, expected "format": "{FORMAT}"')
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path}: policy files of version {VERSION} can be read, found version "
            f"{brief(content.get('version'))}"
        )
    fields = {field.name: field for field in dataclasses.fields(PolicyFile)}
    entries = {k: v for k, v in content.items() if k not in ("format", "version")}
    missing = _OF_THE_MODEL.keys() - entries.keys()
    unknown = entries.keys() - fields.keys()
    if missing or unknown:
        raise ValueError(
            f"{path}: missing entries {sorted(missing)}, unknown entries "
            f"{brief(sorted(unknown))}"
        )
    if problems := _problems(entries):
        raise ValueError(
            bounded("\n  ".join([f"{path}: not a policy:", *several(problems)]))
        )
    try:
        if entries.get("predictor") is not None:
            entries["predictor"] = _predictor(entries["predictor"])
        return PolicyFile(**entries)
    except (TypeError, ValueError) as error:
        raise ValueError(bounded(f"{path}: {error}")) from error


def policy_from_file(
    path: str | os.PathLike,
    model: Any,
    *,
    stable_route: Route | Literal["auto"] = Route.NVFP4,
) -> Policy:
    """The policy of a file, checked against a model or a `BlockGrid`.

    Args:
      path: made by `sixbit calibrate` or `save_policy`.
      model: that it is for.
      stable_route: what runs where DMPQ predicts a small error. NVFP4 is what the file
        was calibrated for; "auto" is the fastest on the default device, which without
        FP4 tensor cores is INT8: more activation bits, and the skips stay.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not valid, or was made for another model.

    >>> import numpy as np
    >>> from sixbit_jax import BlockGrid, policy_from_file
    >>> from sixbit_jax.policies.policy_file import PolicyFile, save_policy
    >>> made_for = {"model_class": "Toy", "config_hash": "0", "sites": ("in",)}
    >>> save_policy(PolicyFile(**made_for, num_blocks=2, tau=0.2), "policy.json")
    >>> policy_from_file("policy.json", BlockGrid(2, ("in",), np.ones((2, 1)))).skips
    True
    """
    if stable_route == "auto":
        stable_route = fast_stable_route()
    stored = load_policy(path)
    try:
        stored.check_fits(model)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return stored.policy(stable_route=stable_route)


def _problems(entries: Mapping[str, Any]) -> list[str]:
    """What is wrong with the types and ranges of a file's entries, one line each."""
    kinds = {name: entry.kind for name, entry in ENTRIES.items()}
    kinds |= {**_OF_THE_MODEL, "calibration": _NOTES}
    return [
        f"{named(name)}: expected {kinds[name].expected}, found {brief(value)}"
        for name, value in entries.items()
        if not kinds[name].fits(value)
    ]


def _predictor(entry: Any) -> ErrorPredictor:
    expected = {"sites", "alpha", "beta"}
    if not isinstance(entry, dict) or entry.keys() != expected:
        found = sorted(entry) if isinstance(entry, dict) else entry
        raise ValueError(
            f"predictor: expected {sorted(expected)}, found {brief(found)}"
        )
    return ErrorPredictor(
        tuple(entry["sites"]), np.array(entry["alpha"]), np.array(entry["beta"])
    )
