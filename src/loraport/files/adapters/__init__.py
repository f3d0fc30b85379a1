"""What a layer of an adapter file means as a matrix: LoRA, LoHa, LoKr, DoRA, PiSSA, full differences."""
