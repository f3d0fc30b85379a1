"""Layers stored in another form: LoRAs are carried over exactly, since what such layers see is known."""
