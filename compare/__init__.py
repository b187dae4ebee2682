"""Hand-written gradients beside PyTorch's own. Native layers are called here, and only here and in tests."""
