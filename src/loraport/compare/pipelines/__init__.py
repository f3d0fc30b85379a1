"""Pipelines of diffusers that make clips: opened, with adapters on their networks, sampled, decoded."""
