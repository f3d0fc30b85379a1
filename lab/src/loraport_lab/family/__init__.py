"""The embedded family: its models, adapters, clips and judges."""
