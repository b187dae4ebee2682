"""One cause that makes several gradients wrong is told once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from compare.gradients.diagnosis import tape_findings
from compare.gradients.diagnosis.changed_native import NativeChange, gradient_of_changed
from compare.gradients.diagnosis.findings import Finding
from compare.gradients.diagnosis.mismatch import Mismatch
from compare.gradients.diagnosis.native_calls import Call, InterceptCalls, call_native
from compare.gradients.diagnosis.native_recording import record
from compare.gradients.diagnosis.probe import Probe
from compare.gradients.diagnosis.wording import join_words
from compare.gradients.run_variant import gradient_name

# Nodes of the graph that change the form of a tensor alone.
FORMS = {"T", "Transpose", "View", "Unsqueeze", "Squeeze", "Permute", "Expand", "ReshapeAlias", "UnsafeView", "Clone"}


def share_causes(findings: Sequence[Finding], mismatches: dict[str, Mismatch], probe: Probe) -> list[Finding]:
    """Give two gradients the same finding if the change of native that explains one explains the other too.

    Args:
        mismatches: one for each wrong gradient, in the probe's variant, by quantity.
    """
    shared = list(findings)
    for finding, now in zip(findings, shared, strict=True):
        change = probe.explanations.get((finding.kind, finding.statement))
        if change is None or now.statement != finding.statement:
            continue
        for n, other in enumerate(shared):
            mismatch = mismatches.get(other.quantity)
            if mismatch is None or other.statement == finding.statement or _has_change(other, probe, before=finding):
                continue
            if explains(change, mismatch, probe):
                shared[n] = replace(finding, quantity=other.quantity, evidence=other.evidence)
    return shared


def explains(change: Any, mismatch: Mismatch, probe: Probe) -> bool:
    """True if a change of native, or of one step of its backward, explains a gradient."""
    if isinstance(change, tape_findings.Change):
        return tape_findings.explains(change, mismatch, probe)
    for other in (mismatch, probe.mismatch(mismatch, 1)):
        if other is not None:
            got = gradient_of_changed(other, probe, change, record(other, probe).records)
            if got is None or not other.equals(got):
                return False
    return True


def find_shared_cause(mismatch: Mismatch, probe: Probe) -> Iterator[Finding]:
    """The finding about a gradient that backward computes earlier, if it explains this one too."""
    for (kind, statement), change in list(probe.explanations.items()):
        if explains(change, mismatch, probe):
            yield Finding(kind, mismatch.quantity, statement)
            continue
        for words, everywhere in _in_all_modules(change, mismatch, probe):
            if words not in statement and explains(everywhere, mismatch, probe):
                statement = _with_modules(statement, words)
                probe.explanations[kind, statement] = everywhere
                yield Finding(kind, mismatch.quantity, statement)


def _in_all_modules(change: Any, mismatch: Mismatch, probe: Probe) -> Iterator[tuple[str, NativeChange]]:
    """The same change in all modules of the same class, and words for them: "modules 1 and 4 (ReLU)"."""
    if not isinstance(change, NativeChange) or not change.site[0].module or change.also:
        return
    inner, class_name = list(change.site[1:]), change.site[0].module.split(" ", 1)[1]
    calls = record(mismatch, probe).calls
    own = next((call.operation for call in calls if call.site == change.site), None)
    sites = [
        call.site for call in calls
        if call.operation == own and call.site[0].module.endswith(f" {class_name}") and list(call.site[1:]) == inner
    ]  # fmt: skip
    others = frozenset(site for site in sites if site != change.site)
    if others:
        paths = [site[0].module.split(" ", 1)[0] for site in dict.fromkeys(sites)]
        yield f"modules {join_words(paths)} {class_name}", replace(change, also=others)


def _with_modules(statement: str, words: str) -> str:
    """The statement with the words for several modules in the place of those for one."""
    class_name = words[words.rindex(" (") :]
    begin = statement.index(" in module ")
    end = statement.index(class_name, begin) + len(class_name)
    return f"{statement[:begin]} in {words}{statement[end:]}"


FOLLOWS = "is wrong as well; backward computes it after the {}, so that mistake may be the cause"


def tell_consequence(quantity: str, earlier: str) -> Finding:
    """Finding about a gradient that follows from one whose mistake has no name."""
    return Finding("unknown", quantity, FOLLOWS.format(earlier))


class BackwardGraph:
    """Order of the gradients in native's backward."""

    def __init__(self, probe: Probe) -> None:
        self.distances: dict[str, int] = {}  # number of steps of backward to each gradient
        self._nodes: dict[str, set[Any]] = {}  # nodes on the way to it
        self._calls: list[Call] = []
        self._own: dict[str, set[Any]] = {}  # nodes of the operations that use its input
        self._walk(probe)

    def in_order(self, quantities: Sequence[str]) -> list[str]:
        """Quantities; of gradients those first that backward computes first: a mistake there makes others wrong."""
        return sorted(quantities, key=lambda quantity: self.distances.get(quantity, 0))

    def is_behind(self, quantity: str, earlier: str) -> bool:
        """True if backward computes a gradient from one at an operation that uses the earlier one's input alone."""
        own = self._own.get(earlier, set())
        return bool(own & self._nodes.get(quantity, set())) and not own & self._own.get(quantity, set())

    def suspects(self, quantity: str, right: Sequence[str]) -> list[str]:
        """Operations in whose derivatives the mistake may be, the nearest to the loss first; none if all may.

        A wrong gradient runs through them. Right ones don't, or don't use the derivative by the same argument.
        """
        own, cleared = self._nodes.get(quantity, set()), {n for name in right for n in self._nodes.get(name, ())}
        if not own & cleared:
            return []
        nodes = own - cleared
        nodes |= {n for n in own & cleared if any(following in nodes for following, _ in n.next_functions)}
        words = [call.name.removeprefix("the result of ") for call in self._calls if call.attached.grad_fn in nodes]
        return list(dict.fromkeys(words))[::-1]

    def _walk(self, probe: Probe) -> None:
        inputs = probe.draw(0)
        if probe.case.native is None or inputs is None:
            return
        leaves = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in inputs.items()}
        mode = InterceptCalls(takes_apart=False)
        try:
            with mode:
                result = call_native(probe.case.native, leaves.values())
        except Exception:  # an integer input that native refuses as a copy, say: then the order is that of the inputs
            return
        self._calls = [call for call in mode.calls if call.attached is not None]
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        level = [o.grad_fn for o in outputs if isinstance(o, Tensor) and o.grad_fn is not None]
        names = {id(value): gradient_name(name) for name, value in leaves.items()}
        before: dict[Any, list[Any]] = {}
        leaf_nodes: dict[str, Any] = {}
        visited: set[Any] = set()
        distance = 0
        while level:
            for node in level:
                quantity = names.get(id(getattr(node, "variable", None)))
                if quantity is not None and quantity not in leaf_nodes:
                    leaf_nodes[quantity] = node
                    self.distances[quantity] = distance
                for following, _ in node.next_functions:
                    if following is not None:
                        before.setdefault(following, []).append(node)
            visited.update(level)
            level = list(dict.fromkeys(n for node in level for n, _ in node.next_functions if n and n not in visited))
            distance += 1
        for quantity, node in leaf_nodes.items():
            self._own[quantity] = _operations(node, before)
            self._nodes[quantity] = _all_before(node, before)


def _operations(leaf: Any, before: dict[Any, list[Any]]) -> set[Any]:
    """The nodes before a leaf, without those that change its form alone."""
    nodes, operations = list(before.get(leaf, [])), set()
    while nodes:
        node = nodes.pop()
        is_form = node.name().removesuffix("Backward0") in FORMS and len(node.next_functions) == 1
        (nodes.extend if is_form else operations.update)(before.get(node, []) if is_form else [node])
    return operations


def _all_before(leaf: Any, before: dict[Any, list[Any]]) -> set[Any]:
    nodes, visited = [leaf], set()
    while nodes:
        for node in before.get(nodes.pop(), []):
            if node not in visited:
                visited.add(node)
                nodes.append(node)
    return visited


def _has_change(finding: Finding, probe: Probe, before: Finding) -> bool:
    """True if the finding is of a change too, which others may share already."""
    return (finding.kind, finding.statement) in probe.explanations and finding.quantity < before.quantity


def tell_once(findings: Sequence[Finding]) -> list[Finding]:
    """Join the gradients about which the same is said, but for the source texts of its operations."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        key = (finding.kind, _without_texts(finding.statement))
        is_consequence = finding.statement.startswith(FOLLOWS[:20])
        alone = finding.kind in ("unknown", "raises", "none") and not is_consequence
        if not finding.quantity.startswith("gradient") or alone:
            key = (*key, finding.quantity)
        groups.setdefault(key, []).append(finding)
    return [_joined(group) for group in groups.values()]


def _joined(group: Sequence[Finding]) -> Finding:
    first = group[0]
    if len(group) == 1:
        return first
    is_same = len({finding.statement for finding in group}) == 1
    statement = first.statement if is_same else _without_texts(first.statement)
    return replace(first, statement=statement, quantity=join_words([finding.quantity for finding in group]))


def _without_texts(statement: str) -> str:
    """The statement without the source texts after the lines: "the result of log in line 17"."""
    return re.sub(r"(in line \d+), `[^`]*`", r"\1", statement)
