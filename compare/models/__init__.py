"""torchvision's models converted by from_torch, compared with the original models: see docs/any-model.md."""
