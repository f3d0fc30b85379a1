"""DIAGNOSIS: what the weights of a pair and a LoRA say about which method to take, and where they cannot tell."""
