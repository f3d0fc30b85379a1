"""The embedded model family: a tiny video model of the Wan architecture, its distilled student and a few style LoRAs.

Everything is small enough to ship inside the package: `loraport demo` shows a real transfer, nothing to download.
This package needs the extra `toy` (diffusers and peft); importing it imports neither, its modules do.
"""
