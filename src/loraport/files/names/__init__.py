"""How layers are called: one table per model family, and the spellings of LoRA keys."""
