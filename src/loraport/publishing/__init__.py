"""Publish a LoRA that was moved: its card, what was measured, and one commit on the Hub."""
