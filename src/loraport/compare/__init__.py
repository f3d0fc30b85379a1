"""COMPARE: the same prompts and noise with and without a LoRA, on its source and on its target, clip by clip."""
