"""What an adapter does to the samples, measured and matched: the end-effect score, the guard, and calibration.

Everything here runs the source with and without the adapter on random noise and prompts. It needs no clips, captions
or gradients, but it is not weight-only. `pair.Pair` says what is needed of two models; the embedded family
(`loraport.toy.pair`) and diffusers pipelines (`effect.pipelines`) are the two that have it.
"""
