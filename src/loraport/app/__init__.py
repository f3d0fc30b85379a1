"""The web page: choose a LoRA and two models, diagnose, transfer, compare; in a browser, as an API, over MCP."""
