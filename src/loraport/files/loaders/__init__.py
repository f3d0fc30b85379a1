"""Which programs can load a LoRA file, and why not."""
