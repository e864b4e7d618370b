"""Compiled programs kept between processes, by JAX's persistent compilation cache."""

import argparse
import os
from pathlib import Path
from typing import Any


def add_cache_argument(parser: Any) -> None:
    """`--no-cache`."""
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="compile anew instead of using the programs of earlier runs (kept in "
        "JAX_COMPILATION_CACHE_DIR, or the user's cache folder)",
    )


def cache_folder() -> Path:
    """Where compiled programs are kept, by the XDG base directory rules."""
    base = os.environ.get("XDG_CACHE_HOME") or ""
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "sixbit-jax" / "programs"


def use_cache(args: argparse.Namespace) -> None:
    """Turns the cache on, unless the user did or does not want it."""
    import jax

    if args.no_cache:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
