"""SAMPLING: what an adapter does to the samples, measured and matched.

Everything here runs the source with and without the adapter on random noise and prompts. It needs no clips, captions
or gradients, but it is not weight-only. `sampling.pair.Pair` says what is needed of two models; diffusers pipelines
(`sampling.wan_pipelines`) have it, and what installed packages offer (`sampling.providers`).
"""
