"""Options of `sample` by name: a typo names the one that was meant."""

import difflib
from typing import Any, NoReturn

_OPTIONS = (
    "latent_shape",
    "num_steps",
    "guidance",
    "conditions",
    "policy",
    "execution",
    "seed",
    "noise",
    "on_step",
    "mesh",
)
_MOVED = {
    "text_embeds": "prompt",
    "negative_text_embeds": "prompt=Prompt(..., negative_embeds=...)",
    "guidance_scale": "guidance=Guidance(scale=...)",
    "dynamic_guidance": "guidance=Guidance(dynamic=...)",
    **{
        name: f"conditions=Conditions({name}=...)"
        for name in (
            "image_latents",
            "image_embeds",
            "first_frames",
            "low_noise",
            "ofs",
        )
    },
    **{
        name: f"execution=Execution({name}=...)"
        for name in (
            "dtype",
            "attention",
            "cache_format",
            "batched_guidance",
            "kernels",
            "progress",
            "arq_block",
        )
    },
    "outlier_stats": "an option of `prepare`",
    "record_errors": "an option of `prepare`",
}


def refuse(unknown: dict[str, Any]) -> NoReturn:
    """Names the options that were meant."""
    problems = []
    for name in unknown:
        if name in _MOVED:
            problems.append(f"{name} is now {_MOVED[name]}")
            continue
        close = difflib.get_close_matches(name, [*_OPTIONS, *_MOVED], 1)
        hint = "" if not close else _MOVED.get(close[0], close[0])
        problems.append(
            f"unknown option {name!r}" + (f"; did you mean {hint}?" if hint else "")
        )
    raise TypeError("sample: " + "; ".join(problems))


__all__ = ["refuse"]
