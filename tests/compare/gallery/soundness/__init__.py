"""Gradients that are wrong in some situations only, by kind, and right Functions of as many kinds."""

from __future__ import annotations

from compare.case import Case
from tests.compare.gallery.soundness.caches import CACHES
from tests.compare.gallery.soundness.complex_numbers import COMPLEX_NUMBERS
from tests.compare.gallery.soundness.flips import FLIPS
from tests.compare.gallery.soundness.frozen_inputs import FROZEN_INPUTS
from tests.compare.gallery.soundness.frozen_parameters import FROZEN_PARAMETERS
from tests.compare.gallery.soundness.incoming_gradient import INCOMING_GRADIENT
from tests.compare.gallery.soundness.right_algebra import RIGHT_ALGEBRA
from tests.compare.gallery.soundness.right_complex import RIGHT_COMPLEX
from tests.compare.gallery.soundness.right_contexts import RIGHT_CONTEXTS
from tests.compare.gallery.soundness.right_layers import RIGHT_LAYERS
from tests.compare.gallery.soundness.right_quantisers import RIGHT_QUANTISERS
from tests.compare.gallery.soundness.state_between_calls import STATE_BETWEEN_CALLS
from tests.compare.gallery.soundness.wrong_gradient import WrongGradient

WRONG_BY_KIND: dict[str, list[WrongGradient]] = {
    "incoming gradient": INCOMING_GRADIENT,
    "flips": FLIPS,
    "frozen inputs": [*FROZEN_INPUTS, *FROZEN_PARAMETERS],
    "state between calls": [*CACHES, *STATE_BETWEEN_CALLS],
    "complex numbers": COMPLEX_NUMBERS,
}
RIGHT: list[Case] = [*RIGHT_QUANTISERS, *RIGHT_LAYERS, *RIGHT_ALGEBRA, *RIGHT_COMPLEX, *RIGHT_CONTEXTS]
