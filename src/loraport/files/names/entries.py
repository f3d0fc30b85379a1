"""The entries of a file in which trainers put networks; their names stand before keys, too."""

PARTS = (
    *("generator_ema", "generator", "state_dict", "model_state_dict", "model", "module", "net", "ema"),
    *("generator_ema_lora", "generator_lora", "lora_state_dict", "lora"),
)
"""Where trainers put the network inside the file, best first: the moving average is what their authors run."""
