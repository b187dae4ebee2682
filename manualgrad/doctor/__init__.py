"""``python -m manualgrad doctor``: a description of the installation, and a self-test of the gradients."""
