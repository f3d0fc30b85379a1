"""One file per command, or per group of commands that share their options: parse, call, print."""
