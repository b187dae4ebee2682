"""Comparison of hand-written gradients with PyTorch's own.

For every output and gradient it reports the wrong elements, their errors, the dtype and memory layout, and the kind
of mistake. Native layers are called only in this package and in the tests.
"""

from compare.case import Case, CaseError
from compare.gradients.comparison import Comparison, assert_matches, compare
from compare.gradients.diagnosis.findings import KINDS, Finding

__all__ = ["KINDS", "Case", "CaseError", "Comparison", "Finding", "assert_matches", "compare"]
