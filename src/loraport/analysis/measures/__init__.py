"""One module a measure of the paper's analysis: tensors in, numbers out."""
