"""RECALL (arXiv 2510.20479): representation-guided, layer-wise model merging without old training data."""
