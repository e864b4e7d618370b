"""The PyTorch peer: diffusers' autoencoder, or its decoder in plain PyTorch.

Where PyTorch or a GPU is missing, the record says so.
"""

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.vae.subjects import Subject, shape_of

_VARIANTS = ("eager", "channels_last_3d", "torch.compile")


def time_peers(
    subject: Subject, config: Any, size: tuple[int, int, int], repeats: int
) -> Iterator[dict[str, Any]]:
    """Decodes a video of `size` latents in bf16: seconds and peak memory."""
    if importlib.util.find_spec("torch") is None:
        yield {"program": "PyTorch", "left_out": "PyTorch is not installed"}
        return
    import torch  # pyrefly: ignore[missing-import]

    if not torch.cuda.is_available():
        yield {"program": "PyTorch", "left_out": "PyTorch sees no GPU"}
        return
    torch.set_grad_enabled(False)
    # Wan's step of one frame differs from the first two; all three are compiled.
    torch._dynamo.config.cache_size_limit = 64
    with torch.device("cuda"):
        try:
            source, model, decode = build(subject, config, torch.bfloat16)
        except NotImplementedError as error:
            yield {"program": "PyTorch", "failure": str(error)}
            return
        z = torch.randn((1, shape_of(config)[0], *size), dtype=torch.bfloat16)
    for variant in _VARIANTS:
        if variant == "channels_last_3d":
            # Not model.to(memory_format=...): it refuses the 2D convolutions' weights.
            for weight in model.parameters():
                if weight.ndim == 5:
                    weight.data = weight.to(memory_format=torch.channels_last_3d)
            z = z.to(memory_format=torch.channels_last_3d)
        if variant == "torch.compile":
            model.decoder.forward = torch.compile(model.decoder.forward)
        record = {"program": f"{source}, {variant}"}
        try:
            yield record | _time(torch, partial(decode, z), repeats)
        except RuntimeError as error:  # Out of memory is one of them.
            yield record | {"failure": f"{type(error).__name__}: {str(error)[:300]}"}


def _time(torch: Any, call: Callable, repeats: int) -> dict[str, Any]:
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    seconds = statistics.median(times)
    return {
        "decode_s": seconds,
        "compile_s": first - seconds,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def build(
    subject: Subject, config: Any, dtype: Any
) -> tuple[str, Any, Callable[[Any], Any]]:
    """The network of random weights: who wrote it, the model, z -> pixels.

    Raises:
      NotImplementedError: without diffusers, for what is not written here.
    """
    if importlib.util.find_spec("diffusers") is not None:
        import diffusers  # pyrefly: ignore[missing-import]

        peer = getattr(diffusers, subject.class_name)
        model = peer(**config.to_dict()).to(dtype).eval()
        return "diffusers", model, lambda z: model.decode(z).sample
    plain = importlib.import_module(subject.peer or "").PlainDecoder(config)
    model = plain.to(dtype).eval()
    return "PyTorch", model, model.decode
