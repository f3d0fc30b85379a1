"""What a transfer works on: settings, opened files, layers paired, each with its weights."""
