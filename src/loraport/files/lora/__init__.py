"""LoRA files: found, read in every dialect, written in every dialect."""
