"""Hand-written gradients beside PyTorch's own: which element, how far off, in which dtype, and what kind of wrong.

Native layers are called here, and only here and in tests.
"""

from compare.case import Case, CaseError
from compare.diagnosis.findings import KINDS, Finding
from compare.gradients import Comparison, assert_matches, compare

__all__ = ["KINDS", "Case", "CaseError", "Comparison", "Finding", "assert_matches", "compare"]
