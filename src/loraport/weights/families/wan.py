"""Wan 2.1 and 2.2: text to video, image to video, first and last frame, one expert at a time.

Sources: the models of github.com/Wan-Video (original) and diffusers' WanTransformer3DModel; FastVideo's
configs/models/dits/wanvideo.py for the names that it uses while it runs.
"""

from __future__ import annotations

from loraport.weights.families.table import Family

WAN = Family(
    name="wan",
    namings=("original", "diffusers", "fastvideo"),
    layers=(
        # original, diffusers, FastVideo while it runs (on disk it uses the names of diffusers)
        ("blocks.{}.self_attn.q", "blocks.{}.attn1.to_q", "blocks.{}.to_q"),
        ("blocks.{}.self_attn.k", "blocks.{}.attn1.to_k", "blocks.{}.to_k"),
        ("blocks.{}.self_attn.v", "blocks.{}.attn1.to_v", "blocks.{}.to_v"),
        ("blocks.{}.self_attn.o", "blocks.{}.attn1.to_out.0", "blocks.{}.to_out"),
        ("blocks.{}.self_attn.norm_q", "blocks.{}.attn1.norm_q", "blocks.{}.norm_q"),
        ("blocks.{}.self_attn.norm_k", "blocks.{}.attn1.norm_k", "blocks.{}.norm_k"),
        ("blocks.{}.cross_attn.q", "blocks.{}.attn2.to_q", "blocks.{}.attn2.to_q"),
        ("blocks.{}.cross_attn.k", "blocks.{}.attn2.to_k", "blocks.{}.attn2.to_k"),
        ("blocks.{}.cross_attn.v", "blocks.{}.attn2.to_v", "blocks.{}.attn2.to_v"),
        ("blocks.{}.cross_attn.o", "blocks.{}.attn2.to_out.0", "blocks.{}.attn2.to_out"),
        ("blocks.{}.cross_attn.norm_q", "blocks.{}.attn2.norm_q", "blocks.{}.attn2.norm_q"),
        ("blocks.{}.cross_attn.norm_k", "blocks.{}.attn2.norm_k", "blocks.{}.attn2.norm_k"),
        # image-to-video of Wan 2.1 only
        ("blocks.{}.cross_attn.k_img", "blocks.{}.attn2.add_k_proj", "blocks.{}.attn2.add_k_proj"),
        ("blocks.{}.cross_attn.v_img", "blocks.{}.attn2.add_v_proj", "blocks.{}.attn2.add_v_proj"),
        ("blocks.{}.cross_attn.norm_k_img", "blocks.{}.attn2.norm_added_k", "blocks.{}.attn2.norm_added_k"),
        # norm3 is norm2 elsewhere: diffusers counts in the order of use; the other two norms have no parameters
        ("blocks.{}.norm3", "blocks.{}.norm2", "blocks.{}.self_attn_residual_norm.norm"),
        ("blocks.{}.ffn.0", "blocks.{}.ffn.net.0.proj", "blocks.{}.ffn.fc_in"),
        ("blocks.{}.ffn.2", "blocks.{}.ffn.net.2", "blocks.{}.ffn.fc_out"),
        # the gate of video sparse attention (FastWan only): one spelling
        ("blocks.{}.to_gate_compress", "blocks.{}.to_gate_compress", "blocks.{}.to_gate_compress"),
        ("patch_embedding", "patch_embedding", "patch_embedding.proj"),
        (
            "text_embedding.0",
            "condition_embedder.text_embedder.linear_1",
            "condition_embedder.text_embedder.fc_in",
        ),
        (
            "text_embedding.2",
            "condition_embedder.text_embedder.linear_2",
            "condition_embedder.text_embedder.fc_out",
        ),
        (
            "time_embedding.0",
            "condition_embedder.time_embedder.linear_1",
            "condition_embedder.time_embedder.mlp.fc_in",
        ),
        (
            "time_embedding.2",
            "condition_embedder.time_embedder.linear_2",
            "condition_embedder.time_embedder.mlp.fc_out",
        ),
        ("time_projection.1", "condition_embedder.time_proj", "condition_embedder.time_modulation.linear"),
        ("head.head", "proj_out", "proj_out"),
        # image-to-video of Wan 2.1 only
        ("img_emb.proj.0", "condition_embedder.image_embedder.norm1", "condition_embedder.image_embedder.norm1"),
        (
            "img_emb.proj.1",
            "condition_embedder.image_embedder.ff.net.0.proj",
            "condition_embedder.image_embedder.ff.fc_in",
        ),
        (
            "img_emb.proj.3",
            "condition_embedder.image_embedder.ff.net.2",
            "condition_embedder.image_embedder.ff.fc_out",
        ),
        ("img_emb.proj.4", "condition_embedder.image_embedder.norm2", "condition_embedder.image_embedder.norm2"),
    ),
    parameters=(
        ("blocks.{}.modulation", "blocks.{}.scale_shift_table", "blocks.{}.scale_shift_table"),
        ("head.modulation", "scale_shift_table", "scale_shift_table"),
        (
            "img_emb.emb_pos",
            "condition_embedder.image_embedder.pos_embed",
            "condition_embedder.image_embedder.pos_embed",
        ),
    ),
    written={"comfy": "original", "diffusers": "diffusers", "peft": "diffusers", "kohya": "original"},
    probe=".self_attn.q",
    sizes={
        (1536, 30): "Wan 2.1 1.3B",
        (5120, 40): "Wan 2.1 14B or one expert of Wan 2.2 A14B",
        (3072, 30): "Wan 2.2 TI2V 5B",
    },
)
