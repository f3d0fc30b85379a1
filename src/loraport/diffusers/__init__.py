"""LoRAs of another model in a diffusers pipeline: transferred onto its own weights, and loaded by its own loader.

import loraport.diffusers

loraport.diffusers.load(pipe, "style.safetensors", source="wan2.1-t2v-1.3b", adapter_name="style")
loraport.diffusers.unload(pipe, "style")
"""

from loraport.diffusers.loading import LoadedLora as LoadedLora
from loraport.diffusers.loading import load as load
from loraport.diffusers.loading import unload as unload
