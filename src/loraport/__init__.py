"""loraport: move a LoRA from a base diffusion model to its distilled variants, by linear algebra on the weights."""

__version__ = "0.1.0"
