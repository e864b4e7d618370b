"""Files with a network and what runs beside it: VAE, text and image encoders.

ComfyUI's checkpoints are such files. The network is taken, and the rest is named.
"""

import re
from collections.abc import Mapping

_OTHERS = {
    "VAE": r"(first_stage_model|vae|autoencoder)\.",
    "text encoder": (
        r"(cond_stage_model|conditioner|text_encoders?|text_encoder_\d|clip|t5|umt5)\."
    ),
    "image encoder": r"(image_encoder|clip_vision|clip_vision_model|vision_model)\.",
}
# Of a network that is all there is, beside such others or alone: `prefixes` strips what
# stands before some of the names.
_OF_NETWORK = r"(transformer|dit)\.(?!layers\.)"


def network_alone[T](tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[str, int]]:
    """The tensors of the network, and how many there were of what else.

    Args:
      tensors: by the names of the file. A file without a network is left as it is.

    Returns:
      The network's tensors, and numbers of the others by kind.
    """
    left: dict[str, int] = {}
    network: dict[str, T] = {}
    for name, value in tensors.items():
        kind = next((k for k, p in _OTHERS.items() if re.match(p, name)), None)
        if kind is None:
            network[name] = value
        else:
            left[kind] = left.get(kind, 0) + 1
    if not network:
        return dict(tensors), {}
    if all(re.match(_OF_NETWORK, name) for name in network):
        network = {re.sub(_OF_NETWORK, "", n, count=1): v for n, v in network.items()}
    return network, left


__all__ = ["network_alone"]
