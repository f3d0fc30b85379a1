"""The cards of a Ray cluster: an actor each that keeps its layers, LoRAs that come by reference, parts that go back."""
