"""What users get, frozen: a refactoring must not change a byte of it.

    python -m tests.frozen record FILE     run every case, and write what came out to FILE (and its outputs beside it)
    python -m tests.frozen compare FILE    run every case again, list every difference, exit 1 if there is one

The cases go through the command line alone, in this process, on inputs that torch, safetensors, gguf and diffusers make
from seeds: modules of the program may be moved and renamed at will. Seconds, memory and absolute places do not count.
Sentences (messages, summaries, reasons inside JSON) are compared apart, as "words": their differences are listed, and
fail only with `--words`. A record belongs to one machine and one build of torch: it is never committed. With
`--only PATTERN` the cases run whose name has that in it, and those on whose outputs they build.
"""
