"""Accelerator LoRAs of Wan 2.1 and 2.2, with the strengths that their makers or users recommend."""

from __future__ import annotations

from loraport.files.presets.preset import AcceleratorPreset

_UNSEEN = "the file itself was not opened: keys, ranks and alpha"
_LIGHTX2V = "configs/distill/ of ModelTC/LightX2V (f8aee98)"
_WAN2GP = "profiles/ and docs/LORAS.md of deepbeepmeep/Wan2GP (8681e9f)"
_KIJAI = "Kijai/WanVideo_comfy"


def _wan(
    name: str, kind: str, models: str, files: dict[str, float], steps: int, notes: str, seen: str, unverified: str = ""
) -> AcceleratorPreset:
    lacking = f"{unverified}; {_UNSEEN}" if unverified else _UNSEEN
    return AcceleratorPreset(
        name, "wan", tuple(models.split()), tuple(files.items()), steps, 1.0, notes, lacking, seen, kind
    )


_FEW_STEP = "Efficient-Large-Model/LongLive-Plug-{}-few-step"
_CFG = "Efficient-Large-Model/LongLive-Plug-{}-cfg"
_14B_FEW = (
    f"{_FEW_STEP.format('Wan2.1-T2V-14B')}@f125af0533b94e2cee0163a7a42bb736d59a1d37:generator_lora_lightx2v.safetensors"
)
_14B_CFG = f"{_CFG.format('Wan2.1-T2V-14B')}@32b8aa3d1db3d178a9c82f3731cc917a34fb7693"
_5B_FEW = f"{_FEW_STEP.format('Wan2.2-TI2V-5B')}@38a6ec4e8f5b644749d3072bfe1ac383d00951c0"
_5B_CFG = _CFG.format("Wan2.2-TI2V-5B")
_CARDS = "the model cards: few-step : CFG = 1 : 0.5"
_STACK = "two LoRAs: few steps, and guidance distilled into the conditional branch"
_CFG_ALONE = "guidance distilled into the conditional branch; gives no few steps by itself"

WAN_ACCELERATORS: tuple[AcceleratorPreset, ...] = (
    _wan("lightx2v-lora-wan2.1-t2v-14b", "lightx2v", "wan2.1-t2v-14b",
         {"lightx2v/Wan2.1-Distill-Loras:wan2.1_t2v_14b_lora_rank64_lightx2v_4step.safetensors": 1.0}, 4,
         "rank 64, 631 MB", f"the repository's listing at 27ae38d; {_LIGHTX2V}"),
    _wan("lightx2v-lora-wan2.1-i2v-14b", "lightx2v", "wan2.1-i2v-14b-480p wan2.1-i2v-14b-720p",
         {"lightx2v/Wan2.1-Distill-Loras:wan2.1_i2v_lora_rank64_lightx2v_4step.safetensors": 1.0}, 4,
         "rank 64, 739 MB", f"the repository's listing at 27ae38d; {_LIGHTX2V}"),
    *(_wan(f"lightx2v-lora-wan2.2-{kind}-a14b-{noise}", "lightx2v", f"wan2.2-{kind}-a14b-{noise}",
           {f"lightx2v/Wan2.2-Distill-Loras:wan2.2_{kind}_A14b_{noise}_noise_lora_rank64_lightx2v_4step_{date}"
            ".safetensors": 1.0}, 4, f"one of two experts; the version of {date[2:]}.{date[:2]}.2025", _LIGHTX2V)
      for kind, date in (("t2v", "1217"), ("i2v", "1022")) for noise in ("high", "low")),
    *(_wan(f"lightning-lora-wan2.2-{kind}-a14b-{noise}", "lightning", f"wan2.2-{kind}-a14b-{noise}",
           {f"lightx2v/Wan2.2-Lightning:Wan2.2-{kind.upper()}-A14B-4steps-lora-rank64-Seko-{version}/"
            f"{noise}_noise_model.safetensors": 1.0}, 4,
           "one of two experts; users lower the high-noise one's strength where motion is lost", _WAN2GP,
           "the listing of the repository, known from scripts that fetch from it")
      for kind, version in (("t2v", "V1.1"), ("i2v", "V1")) for noise in ("high", "low")),
    _wan("causvid-lora-wan2.1-t2v-1.3b", "causvid", "wan2.1-t2v-1.3b",
         {f"{_KIJAI}:Wan21_CausVid_bidirect2_T2V_1_3B_lora_rank32.safetensors": 1.0}, 8,
         "extracted by Kijai from the bidirectional checkpoint, rank 32", _WAN2GP),
    _wan("causvid-lora-wan2.1-t2v-14b", "causvid", "wan2.1-t2v-14b",
         {f"{_KIJAI}:Wan21_CausVid_14B_T2V_lora_rank32.safetensors": 0.3}, 12,
         "the first version: 0.3 at 12 steps, 0.5 to 0.7 at 8, 0.8 to 1 at 4", _WAN2GP),
    _wan("causvid-v2-lora-wan2.1-t2v-14b", "causvid-v2", "wan2.1-t2v-14b",
         {f"{_KIJAI}:Wan21_CausVid_14B_T2V_lora_rank32_v2.safetensors": 1.0}, 8, "without the flashes of the first",
         "scripts that fetch it", "strength and steps: users report 0.7 to 1"),
    _wan("fastwan-lora-wan2.2-ti2v-5b", "fastwan", "wan2.2-ti2v-5b",
         {"DeepBeepMeep/Wan2.2:loras_accelerators/Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16.safetensors": 1.0}, 3,
         "extracted from FastWan 2.2 5B with full attention, rank 128", _WAN2GP),
    _wan("longlive-plug-wan2.1-t2v-14b", "longlive-plug", "wan2.1-t2v-14b", {_14B_FEW: 1.0, _14B_CFG: 0.5}, 4,
         _STACK, _CARDS),
    _wan("longlive-plug-few-step-wan2.1-t2v-14b", "longlive-plug-few-step", "wan2.1-t2v-14b", {_14B_FEW: 1.0}, 4,
         "to be used with the one for guidance; rank 128, alpha 128 in the header", _CARDS),
    _wan("longlive-plug-cfg-wan2.1-t2v-14b", "longlive-plug-cfg", "wan2.1-t2v-14b", {_14B_CFG: 0.5}, 50,
         _CFG_ALONE, _CARDS, "the number of steps: the base's"),
    _wan("longlive-plug-wan2.2-ti2v-5b", "longlive-plug", "wan2.2-ti2v-5b", {_5B_FEW: 1.0, _5B_CFG: 0.5}, 4,
         _STACK, _CARDS),
    _wan("longlive-plug-few-step-wan2.2-ti2v-5b", "longlive-plug-few-step", "wan2.2-ti2v-5b", {_5B_FEW: 1.0}, 4,
         "to be used with the one for guidance", _CARDS),
    _wan("longlive-plug-cfg-wan2.2-ti2v-5b", "longlive-plug-cfg", "wan2.2-ti2v-5b", {_5B_CFG: 0.5}, 50,
         _CFG_ALONE, _CARDS, "the number of steps: the base's"),
)  # fmt: skip
