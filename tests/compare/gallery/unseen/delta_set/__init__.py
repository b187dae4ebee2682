"""The delta set: images, signals, geometry and indexing; each wrong Function is written out whole, as by a user."""
