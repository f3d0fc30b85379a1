"""SAMPLING: measure what an adapter does to samples of the source, and how much of it the target shows.

Everything here samples both models from random noise and prompts: no clips, captions or gradients are needed, but it is
not weight-only. `sampling.pair.Pair` is the protocol of two models that can be sampled; diffusers' Wan pipelines
implement it (`sampling.wan_pipelines`), and so may installed packages (`sampling.providers`).
"""
