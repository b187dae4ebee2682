"""The gradient comparison: every output and gradient of a case, in every dtype and memory layout, beside native's."""
