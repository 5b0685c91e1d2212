"""What a seed may be."""

# Of PyTorch, NumPy and scikit-learn.
SEEDS = 2**32
