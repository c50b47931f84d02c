"""VAE Lab: a variational autoencoder is a choice of prior, likelihood, posterior and objective."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `load_run` on first use, so that `import vaelab.models` does not import Hydra."""
    if name != "load_run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vaelab.runs import load_run

    return load_run
