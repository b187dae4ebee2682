"""torchvision's models with our layers in them, beside the same models as they are: see docs/any-model.md."""
