"""VAE Lab: every variational autoencoder as a choice of prior, likelihood, posterior and bound."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`from vaelab import load_run`, and yet `import vaelab.models` pulls in no Hydra."""
    if name != "load_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vaelab.runs import load_run

    return load_run
