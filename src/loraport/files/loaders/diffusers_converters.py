"""Predict what diffusers' converters do with a file's keys: they take what they know, and raise for what is left over.

The converters themselves are private functions of a heavy package, go one way and need the whole file.

Read in diffusers 0.42: `_convert_non_diffusers_wan_lora_to_diffusers`, `_convert_musubi_wan_lora_to_diffusers`,
`_convert_non_diffusers_lora_to_diffusers`, `_convert_hunyuan_video_lora_to_diffusers`,
`_convert_non_diffusers_krea2_lora_to_diffusers`, `_convert_non_diffusers_minimax_h3_lora_to_diffusers`,
`_convert_non_diffusers_qwen_lora_to_diffusers`, those of FLUX.1 for the files of kohya's scripts, OneTrainer, XLabs and
fal, `load_lora_adapter`; and run on tiny models, file by file, in `tests/contracts/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from loraport.files.loaders.facts import Facts
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR, PEFT_PREFIX

Findings = tuple[list[str], list[str]]
"""(why it raises, what it leaves out)."""
Converter = Callable[[Facts], Findings]

_IN_BLOCK = re.compile(r"blocks\.\d+\.((?:self|cross)_attn\.[qkvo]|cross_attn\.[kv]_img|ffn\.[02])")
_OUTSIDE = ("time_projection.1", "head.head", "text_embedding.0", "text_embedding.2", "time_embedding.0",
            "time_embedding.2", "img_emb.proj.1", "img_emb.proj.3")  # fmt: skip


_OWN = ("transformer.", "transformer_2.", "unet.", "text_encoder.", "text_encoder_2.")


def component_keys(facts: Facts) -> Findings:
    """Judge diffusers' own names: every key must have `lora` in it, and stand behind the name of a component."""
    raised, left = _only_lora(facts), [key for key in facts.names if not key.startswith(_OWN)]
    return raised, [f"{len(left)} keys are left out, such as {left[0]}"] if left else []


def component_keys_of_wan(facts: Facts) -> Findings:
    """Judge the same for Wan, where one key of another spelling makes diffusers take the whole file as that."""
    others = [key for key in facts.names if key.startswith(("diffusion_model.", "lora_unet_"))]
    raised, left = component_keys(facts)
    return [f"it takes the file as one of original names, since {others[0]} is there"] if others else raised, left


def _only_lora(facts: Facts) -> list[str]:
    alien = [key for key in facts.names if "lora" not in key]
    return [f"it refuses keys without 'lora' in them: {alien[0]}"] if alien else []


def wan_original(facts: Facts) -> Findings:
    """Judge Wan's original names behind `diffusion_model.`."""
    prefix = "diffusion_model."
    names = {key.removeprefix(prefix) for key in facts.names if key.startswith(prefix)}
    if others := [key for key in facts.names if not key.startswith(prefix)]:
        return [f"it cuts {prefix} off every key, {others[0]} among them, and refuses what comes of it"], []
    if not any(name.startswith("blocks.") for name in names):
        return ["it looks for the first and the last block, and there is none"], []
    down, up = PEFT_PAIR if any("lora_A" in name for name in names) else KOHYA_PAIR
    images = all(any(part in name for name in names) for part in ("k_img", "v_img"))
    norms = {name for name in names if name.endswith((".diff", ".diff_b")) and "norm" in name}
    time = {name for name in names if "time_projection" in name}
    lost = norms | (set() if any(name.endswith(".weight") for name in time) else time)
    left = names - lost
    raised = []
    for layer in {name.rpartition(".lora_")[0] or name.rpartition(".")[0] for name in left}:
        inside = _IN_BLOCK.fullmatch(layer)
        if inside and ("_img" not in layer or images):
            if f"{layer}.alpha" in left and not {layer + down, layer + up} <= left:
                raised.append(f"it misses {layer}{down}, whose alpha is there")
            left -= {layer + down, layer + up, f"{layer}.alpha", f"{layer}.diff_b"}
        elif layer in _OUTSIDE:
            if re.match(r"(text|time)_embedding", layer) and not {layer + down, layer + up} <= left:
                raised.append(f"it misses {layer}{down}, since {layer} has other keys")
            if layer == "head.head" and "head.head.diff" in left and "head.head.diff_b" not in left:
                raised.append("it takes head.head.diff together with head.head.diff_b only")
            taken = {layer + down, layer + up, f"{layer}.diff_b"} | ({"head.head.diff"} if "head" in layer else set())
            left -= taken
    if alien := sorted(name for name in left if ".diff" not in name):
        raised.append(f"it refuses what it has no name for: {alien[0]}")
    gone = sorted(lost | left)
    return raised, [f"{len(gone)} keys are left out, such as {gone[0]}"] if gone else []


def wan_flattened(facts: Facts) -> Findings:
    """Judge Wan's flattened names: nothing but pairs and alphas may be beside them."""
    alien = [key for key in facts.names if not key.endswith((*KOHYA_PAIR, ".alpha"))]
    return ([f"it refuses what it has no name for: {alien[0]}"] if alien else []), []


def unet_flattened(facts: Facts) -> Findings:
    """Judge U-Nets' flattened names: nothing but pairs, alphas and text encoders may be beside them."""
    flat = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
    names = {key for key in facts.names if "dora_scale" not in key}
    dora = len(names) < len(facts.names)
    if others := [key for key in names if not key.startswith(flat)]:
        return [f"it takes a file as kohya's only where all keys are, and {others[0]} is not"], []
    stems = {key.removesuffix(KOHYA_PAIR[0]) for key in names if key.endswith(KOHYA_PAIR[0])}
    left = {key for key in names if key.split(".")[0] not in stems or not key.endswith((*KOHYA_PAIR, ".alpha"))}
    raised = [f"it refuses what it has no name for: {min(left)}"] if left else []
    if any("text_projection" in stem for stem in stems):
        raised.append("it has no place for the text projection")
    return raised, ["dora_scale is left out, so the update is another"] if dora else []


def hunyuan_original(facts: Facts) -> Findings:
    """Judge HunyuanVideo's original names, which diffusers knows by the fused image attention."""
    raised = _only_lora(facts)
    if not any("img_attn_qkv" in key for key in facts.names):
        raised.append("it knows original names by double_blocks.N.img_attn_qkv, and there is none")
    if narrow := [layer for layer, width in facts.single_widths.items() if width != 3072]:
        raised.append(f"it divides {narrow[0]} as in a model 3072 wide")
    return raised, []


def krea2_component(facts: Facts) -> Findings:
    """Judge diffusers' own names for Krea 2: a key of another spelling makes it take the whole file as that."""
    if others := [key for key in facts.names if key.startswith(_KREA_2)]:
        return [f"it takes the file as one of original names, since {others[0]} is there"], []
    return without_dora_scale(facts, component_keys)


_KREA_2 = ("diffusion_model.", PEFT_PREFIX)


def krea2_original(facts: Facts) -> Findings:
    """Judge Krea 2's original names behind `diffusion_model.` or `base_model.model.`: A and B alone, and no other key.

    `_convert_non_diffusers_krea2_lora_to_diffusers` raises for what is left over, alphas among it.
    """
    alien = [
        key for key in facts.names if not (key.startswith(_KREA_2) and key.endswith(PEFT_PAIR)) and not _is_dora(key)
    ]
    unknown = [layer for layer, ways in facts.spelled.items() if not any(naming == "original" for _, naming in ways)]
    raised = [f"it refuses what it has no name for: {(alien or unknown)[0]}"] if alien or unknown else []
    return raised, _DORA if any(map(_is_dora, facts.names)) else []


_DORA = ["dora_scale is left out, so the update is another"]


def _is_dora(key: str) -> bool:
    return "dora_scale" in key


def without_dora_scale(facts: Facts, judge: Converter) -> Findings:
    """Judge a file as its pipeline does that leaves out `dora_scale`, with a warning, before anything else."""
    raised, left = judge(replace(facts, names=tuple(key for key in facts.names if not _is_dora(key))))
    return raised, [*left, *(_DORA if any(map(_is_dora, facts.names)) else [])]


_H3_LAYER = re.compile(
    r"(?:token_refiner[._])?blocks[._]\d+[._](?:attn[._](?:qkv|out)_proj|mlp[._]fc[12])"
    r"|blocks[._]\d+[._]adaln_proj[._]linear|(?:video|audio)_patch_proj|condition_proj|time_embedder[._]proj_(?:in|out)"
    r"|final_layer[._](?:adaln_proj[._]linear|(?:video|audio)_out)"
)
_H3_STARTS = ("diffusion_model.", "lora_unet_", "blocks.", "token_refiner.blocks.", "final_layer.")


def h3_original(facts: Facts) -> Findings:
    """Judge MiniMax-H3's original names: nothing but pairs of one ending and alphas may be there."""
    if not any(key.startswith(_H3_STARTS) for key in facts.names):
        return ["it knows original names by their blocks, and there is none"], []
    names = [key.removeprefix("diffusion_model.").removeprefix("lora_unet_") for key in facts.names]
    names = [key.replace(".default.", ".") for key in names if not _is_dora(key)]
    pair = KOHYA_PAIR if any(".lora_down.weight" in key for key in names) else PEFT_PAIR
    left = []
    for key in names:
        ending = next((one for one in (*pair, ".alpha") if key.endswith(one)), "")
        module = key.removesuffix(ending)
        if not ending or not _H3_LAYER.fullmatch(module) or f"{module}{pair[0]}" not in names:
            left.append(key)
    return [f"it refuses what it has no name for: {left[0]}"] if left else [], []


FLUX_WIDTH, FLUX_BLOCKS = 3072, (("double_blocks", 19), ("single_blocks", 38))
"""What the converters of FLUX.1 are written for: the width of single blocks, and how many blocks there are."""


def flux_own(facts: Facts) -> Findings:
    """Judge diffusers' own names of FLUX.1: of lora_down and lora_up the alphas go unread."""
    left = [key for key in facts.names if not key.startswith(_OWN)]
    lost = [f"{len(left)} keys are left out, such as {left[0]}"] if left else []
    if KOHYA_PAIR in facts.pairs and facts.scaled and facts.alphas:
        lost.append("it ignores .alpha beside lora_down and lora_up, so the strength is wrong")
    return [], lost


def flux_kohya(facts: Facts) -> Findings:
    """Judge FLUX.1's original names with lora_down and lora_up, flattened or behind `diffusion_model.`."""
    raised, modules = [], {key.partition(".lora_")[0] for key in facts.names if ".lora_" in key}
    for blocks, count in FLUX_BLOCKS:
        numbers = {name: re.search(rf"{blocks}[._](\d+)", name) for name in modules}
        if deep := sorted(name for name, number in numbers.items() if number and int(number[1]) >= count):
            raised.append(f"it has {count} {blocks}, and refuses {deep[0]}")
    if narrow := [layer for layer, width in facts.single_widths.items() if width != FLUX_WIDTH]:
        raised.append(f"it divides {narrow[0]} as in a model {FLUX_WIDTH} wide")
    return raised, []


_FLUX_2_DROPPED = ("guidance_in_", "double_stream_modulation_", "single_stream_modulation_", "final_layer_adaLN_")


def flux2_original(facts: Facts) -> Findings:
    """Judge FLUX.2's names behind `diffusion_model.` or `base_model.model.`, the original's or diffusers': A and B."""
    alien = [key for key in facts.names if not key.startswith(("diffusion_model.", PEFT_PREFIX)) and "dora" not in key]
    others = [key for key in facts.names if not key.endswith(PEFT_PAIR) and "dora" not in key]
    unknown = [
        layer
        for layer, ways in facts.spelled.items()
        if "blocks." not in layer and not any(naming == "original" for _, naming in ways)
    ]
    raised = [f"it refuses what it has no name for: {one}" for one in [*alien, *others, *unknown][:1]]
    swapped = any("final_layer.adaLN_modulation" in key for key in facts.names)
    return raised, ["it does not exchange the halves of final_layer.adaLN_modulation.1"] if swapped else []


def flux2_kohya(facts: Facts) -> Findings:
    """Judge FLUX.2's original names flattened: what it has no name for is left out."""
    left = [key for key in facts.names if key.removeprefix("lora_unet_").startswith(_FLUX_2_DROPPED)]
    return [], [f"{len(left)} keys are left out, such as {left[0]}"] if left else []


def ltx2_original(facts: Facts) -> Findings:
    """Judge LTX-2's names behind `diffusion_model.`: other keys go to the text connectors, or are left out."""
    own = [key for key in facts.names if key.startswith("diffusion_model.")]
    alien = [key for key in own if "lora" not in key]
    left = [key for key in facts.names if key not in own and not key.startswith("text_embedding_projection.")]
    left += [key for key in own if "_embeddings_connector." in key]
    raised = [f"it refuses keys without 'lora' in them: {alien[0]}"] if alien else []
    return raised, [f"{len(left)} keys are left out, such as {left[0]}"] if left else []


def flux_onetrainer(facts: Facts) -> Findings:
    """Judge FLUX.1's names of diffusers flattened behind `lora_transformer_`, as OneTrainer writes them."""
    raised = ["it needs an alpha for every layer"] if facts.without_alpha else []
    if others := [
        layer for layer in facts.layers if "blocks." in layer and ".attn.to_" not in layer.replace("add_", "to_")
    ]:
        raised.append(f"inside the blocks it knows attention only, and refuses {others[0]}")
    return raised, []


def flux_whole(facts: Facts) -> Findings:
    """Judge FLUX.1's original names behind `base_model.model.`: nothing may be missing, and nothing beside."""
    double = ("img_mod.lin", "txt_mod.lin", "img_attn.qkv", "txt_attn.qkv", "img_attn.proj", "txt_attn.proj",
              "img_mlp.0", "img_mlp.2", "txt_mlp.0", "txt_mlp.2")  # fmt: skip
    layers = {"double_blocks": double, "single_blocks": ("modulation.lin", "linear1", "linear2")}
    wanted = {
        f"{blocks}.{number}.{layer}"
        for blocks, count in FLUX_BLOCKS
        for number in range(count)
        for layer in layers[blocks]
    }
    wanted.add("final_layer.linear")
    keys = {f"{PEFT_PREFIX}{layer}{ending}" for layer in wanted for ending in PEFT_PAIR}
    if keys != set(facts.names):
        return [
            "it takes these names only where every layer of all blocks and final_layer.linear are there, no other"
        ], []
    return [], []


def _is_converted(key: str) -> bool:
    """Return whether a key makes the pipelines of Qwen-Image and Z-Image take a file as none of their own."""
    return key.endswith(".alpha") or key.startswith(("diffusion_model.", "lora_unet_")) or "default." in key


def component_unless_converted(facts: Facts) -> Findings:
    """Judge diffusers' own names for Qwen-Image and Z-Image: of a file that is converted, they get `transformer` twice.

    `_convert_non_diffusers_qwen_lora_to_diffusers`, `_convert_non_diffusers_z_image_lora_to_diffusers`.
    """
    if marks := [key for key in facts.names if _is_converted(key)]:
        return [f"it converts a file with keys like {marks[0]}, and finds no layer behind transformer. then"], []
    return without_dora_scale(facts, component_keys)


_BESIDE_FLAT = ("lora_unet_", "transformer_blocks.", "img_in.", "txt_in.", "proj_out.")
"""How the dotted keys begin that its converter takes beside flattened ones."""


def qwen_converted(facts: Facts) -> Findings:
    """Judge what becomes of Qwen-Image's names without prefix, behind `diffusion_model.` and flattened."""
    return without_dora_scale(facts, _qwen_converted)


def _qwen_converted(facts: Facts) -> Findings:
    if not any(map(_is_converted, facts.names)):
        return [_NO_MARK], []
    flat = [key for key in facts.names if key.startswith("lora_unet_")]
    dotted = [key for key in facts.names if not key.removeprefix("diffusion_model.").startswith(_BESIDE_FLAT)]
    if flat and dotted:
        return [f"it takes all keys as flattened, since {flat[0]} is there, and loses {dotted[0]}"], []
    down_up = any(key.endswith(KOHYA_PAIR) for key in facts.names)
    pairs = KOHYA_PAIR if down_up else PEFT_PAIR
    taken = (*pairs, ".alpha")
    alien = [key for key in facts.names if not key.replace("default.", "").endswith(taken)]
    return [f"it refuses what it has no name for: {alien[0]}"] if alien else [], []


def z_image_component(facts: Facts) -> Findings:
    """Judge diffusers' own names for Z-Image, whose pipeline alone takes LoKr, too."""
    if not any(map(_is_lokr, facts.names)):
        return component_unless_converted(facts)
    if marks := [key for key in facts.names if key.endswith(".alpha") or key.startswith("diffusion_model.")]:
        return [f"it converts a file with keys like {marks[0]}, and finds no layer behind transformer. then"], []
    left = [key for key in facts.names if not key.startswith(_OWN)]
    return [], [f"{len(left)} keys are left out, such as {left[0]}"] if left else []


def z_image_converted(facts: Facts) -> Findings:
    """Judge what becomes of Z-Image's names without prefix, behind `diffusion_model.` and flattened."""
    return without_dora_scale(facts, _z_image_lokr if any(map(_is_lokr, facts.names)) else _z_image_converted)


def _is_lokr(key: str) -> bool:
    return ".lokr_" in key


def _z_image_lokr(facts: Facts) -> Findings:
    alien = [key for key in facts.names if not _is_lokr(key) and not key.endswith(".alpha")]
    if alien or any(key.startswith("lora_unet_") for key in facts.names):
        return [f"beside LoKr it refuses all else: {(alien or facts.names)[0]}"], []
    if not any(key.startswith("diffusion_model.") or key.endswith(".alpha") for key in facts.names):
        return [_NO_MARK], []
    return [], []


_NO_MARK = "names without prefix are left out, since there is no alpha that would make it convert them"
_DOTS = (".lora.down.weight", ".lora.up.weight")


def _z_image_converted(facts: Facts) -> Findings:
    if not any(map(_is_converted, facts.names)):
        return [_NO_MARK], []
    flat = [key for key in facts.names if key.startswith("lora_unet_")]
    if flat and len(flat) < len(facts.names):
        return [f"it takes all keys as flattened, since {flat[0]} is there"], []
    down_up = any(key.endswith(KOHYA_PAIR) for key in facts.names)
    taken = (*(KOHYA_PAIR if down_up else PEFT_PAIR), *_DOTS, ".alpha")
    alien = [key for key in facts.names if not key.replace("default.", "").endswith(taken)]
    return [f"it refuses what it has no name for: {alien[0]}"] if alien else [], []
