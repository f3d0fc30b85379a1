"""Transfer LoRAs between models: layer by layer, each with its new update and its row in the report, into a file."""
