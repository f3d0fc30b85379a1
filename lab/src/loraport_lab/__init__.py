"""The laboratory of loraport: a family of tiny video models with trained weights, the benchmark on it, and the demo."""

import loraport

__version__ = "0.1.0"

if loraport.__version__ != __version__:  # pip sees to it, unless it was told not to look at dependencies
    raise ImportError(
        f"loraport-lab {__version__} works with loraport {__version__}, and {loraport.__version__} is installed"
    )
