"""The rule behind the advice, and the measured map that it comes from: numbers in, verdicts out, nothing opened."""
