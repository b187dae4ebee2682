"""The zeta set: layers and losses of neural networks, each wrong Function written out whole, as in a user's file."""
