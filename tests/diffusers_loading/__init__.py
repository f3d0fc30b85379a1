"""LoRAs loaded into diffusers' pipelines."""
