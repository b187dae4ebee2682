"""Fill docs/equations.md in place: the code that cites each equation, the tests that prove it, the measured error.

python scripts/equations_page.py            # rewrites these parts of the page
python scripts/equations_page.py --check    # writes nothing; exit code 1 if a part is stale or an error is too large

Text and examples on the page are written by hand; tests/docs/test_equation_examples.py runs the examples. The filled
parts come from markers: a line of code ends with "# eq. (n)", and "# proves eq. (n)" stands above the def of a test.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent

import numpy as np
import torch
from torch import Tensor

from manualgrad import DocumentCNN, backprop, functional
from manualgrad.reference import network as reference_network
from manualgrad.reference import operations as reference

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "equations.md"
LIMIT = 1e-12

# Name and file of a link such as [relu.py::relu_forward](../manualgrad/ops/relu.py)
LINK = re.compile(r"\[\S+::(\S+)\]\((?:\.\./)?([^\s)]+)\)")
CODE = re.compile(rf"((?:{LINK.pattern}(?:,\s| and )?)+:\n\n```python\n)(?:.*\n)*?```")
PROOF = re.compile(r"^\*\*Proof\.\*\*\n\n?(?:- .*\n)*\n?", re.MULTILINE)

# ------------------------------------------------------------------------------------ code and proofs


def is_cited(line: str, equation: int) -> bool:
    """True if a line of code ends with a comment such as "# eq. (1), (17)" that names the equation."""
    comment = re.fullmatch(r" *[^\s#].*?#(.*\beq\. \(.*)", line)
    return comment is not None and f"({equation})" in comment[1]


def scopes(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Qualified name and node of every class and function, outer ones first."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            name = f"{prefix}.{child.name}".lstrip(".")
            yield name, child
        yield from scopes(child, name)


def citations(equation: int, source: str) -> list[tuple[str, str]]:
    """Enclosing function and text of each line that cites the equation; for a closing bracket, of its statement."""
    lines, tree, result = source.splitlines(), ast.parse(source), []
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    for number, line in enumerate(lines, start=1):
        if is_cited(line, equation):
            start = number
            if re.match(r"[\s)\]}]*#", line):
                start = max(node.lineno for node in statements if node.end_lineno == number)
            name = [name for name, node in scopes(tree) if node.lineno <= number <= node.end_lineno][-1]
            result.append((name, dedent("\n".join(lines[start - 1 : number]))))
    return result


def code(equation: int, links: str) -> str:
    """The lines that cite the equation in each linked function."""
    quoted = []
    for name, file in LINK.findall(links):
        cited = citations(equation, (ROOT / file).read_text(encoding="utf-8"))
        lines = [text for function, text in cited if function == name]
        if not lines:
            others = ", ".join(dict.fromkeys(function for function, _ in cited)) or "nothing"
            raise LookupError(f"equation ({equation}) is not cited by {name} in {file}, but by {others}")
        quoted += lines
    return "\n".join(quoted)


def proofs(heading: str) -> str:
    """Links to the tests that are marked as proofs of "Equation (n)", or of the second derivatives in the heading."""
    marked = re.compile(r"^# proves (.*)\n(?:@.*\n)*def (test_\w+)\(", re.MULTILINE)
    equation, links = heading.removeprefix("Equation "), []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for claim, test in marked.findall(path.read_text(encoding="utf-8")):
            if equation in claim.removeprefix("eq. ").split(", ") or claim == heading.lower():
                links.append(f"- [{path.name}::{test}](../{path.relative_to(ROOT).as_posix()})\n")
    if not links:
        raise LookupError(f"no test is marked as a proof of {heading!r}")
    return "".join(links)


def filled(page: str, errors: dict[int, float]) -> str:
    """The page with its code, proofs and measured errors up to date."""
    sections = re.split(r"^(?=#{2,3} )", page, flags=re.MULTILINE)
    return "".join(_filled_section(section, errors) for section in sections).rstrip("\n") + "\n"


def _filled_section(section: str, errors: dict[int, float]) -> str:
    heading = section.partition("\n")[0].lstrip("# ")
    number, measured = re.fullmatch(r"Equation \((\d+)\)", heading), ""
    if number:
        n = int(number[1])
        section = CODE.sub(lambda match: f"{match[1]}{code(n, match[1])}\n```", section)
        measured = f"- measured: {errors[n]:.1e}\n" if errors[n] else "- measured: 0, equal to the last bit\n"
    return PROOF.sub(lambda _: f"**Proof.**\n\n{proofs(heading)}{measured}\n", section)


# --------------------------------------------------------------------------------------------- errors


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def leaf(array: np.ndarray) -> Tensor:
    """A copy in PyTorch's layout: (B, H, W, R) becomes (B, R, H, W), all else stays."""
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy() if array.ndim == 4 else array.copy()).requires_grad_()


def weight_leaf(array: np.ndarray) -> Tensor:
    """A copy in PyTorch's layout: (P+1, Q+1, R, K) becomes (K, R, P+1, Q+1), and (I, J) becomes (J, I)."""
    return torch.from_numpy(array.T.swapaxes(-1, -2).copy() if array.ndim == 4 else array.T.copy()).requires_grad_()


def sheet_layout(tensor: Tensor) -> np.ndarray:
    """The reverse of :func:`leaf`."""
    return (tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).detach().numpy()


def sheet_weight(tensor: Tensor) -> np.ndarray:
    """The reverse of :func:`weight_leaf`."""
    return (tensor.permute(2, 3, 1, 0) if tensor.dim() == 4 else tensor.t()).detach().numpy()


def difference(ours: object, expected: object) -> float:
    """The largest difference. Raises ValueError unless both are float64 arrays of one shape."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    if ours.dtype != np.float64 or ours.shape != expected.shape:
        raise ValueError(f"{ours.dtype} {ours.shape} cannot be compared with {expected.dtype} {expected.shape}")
    return float(np.abs(ours - expected).max())


def layer_errors() -> dict[int, float]:
    """The largest difference of each layer's formulas, (1) to (15), from the nested loops."""
    x, w, stride = random(2, 10, 8, 3), random(3, 2, 3, 4, seed=1), (2, 3)
    ours, delta = (leaf(x), weight_leaf(w)), random(2, 4, 3, 4, seed=2)
    z = functional.conv2d(*ours, stride=stride)
    grad_x, grad_w = torch.autograd.grad(z, ours, leaf(delta))
    errors = {
        1: difference(sheet_layout(z), reference.conv2d(x, w, None, stride)),
        2: difference(sheet_layout(grad_x), reference.conv2d_grad_input(delta, w, x.shape, stride)),
        3: difference(sheet_weight(grad_w), reference.conv2d_grad_weight(delta, x, w.shape, stride)),
    }
    x = np.random.default_rng(3).integers(-2, 3, (2, 7, 8, 3)).astype(float)  # with many ties
    ours, delta = leaf(x), random(2, 3, 4, 3, seed=4)
    p, f = functional.max_pool2d(ours), functional.flatten(ours)
    (back_p,), (back_f,) = torch.autograd.grad(p, ours, leaf(delta)), torch.autograd.grad(f, ours, f.detach())
    back = reference.max_pool2d_backward(delta, x)
    errors[4] = max(difference(sheet_layout(p), reference.max_pool2d(x)), difference(sheet_layout(back_p), back))
    errors[5] = max(difference(sheet_layout(f), reference.flatten(x)), difference(sheet_layout(back_f), x))

    x, w, delta = random(3, 5), random(5, 4, seed=1), random(3, 4, seed=2)
    ours = leaf(x), weight_leaf(w)
    d = functional.dense(*ours)
    grad_x, grad_w = torch.autograd.grad(d, ours, leaf(delta))
    errors[6] = difference(sheet_layout(d), reference.dense(x, w))
    errors[7] = difference(grad_x, reference.dense_grad_input(delta, w))
    errors[8] = difference(sheet_weight(grad_w), reference.dense_grad_weight(delta, x))

    z, delta = np.array([-2.0, -5e-324, -0.0, 0.0, 5e-324, 3.0]), random(6)
    ours = leaf(z)
    r = functional.relu(ours)
    errors[9] = difference(sheet_layout(r), reference.relu(z))
    errors[10] = difference(*torch.autograd.grad(r, ours, leaf(delta)), reference.relu_backward(delta, z))

    z, delta = 3 * random(3, 4), random(3, 4, seed=1)
    y = np.array([[0, 0, 1, 0], [0.1, 0.2, 0.3, 0.4], [0.9, 0.5, 0.3, 0.7]])  # the last do not sum to 1
    ours, target = leaf(z), torch.from_numpy(y)
    s, costs = functional.softmax(ours), functional.softmax_cross_entropy(ours, target, reduction="none")
    errors[11] = difference(sheet_layout(s), reference.softmax(z))
    errors[12] = difference(*torch.autograd.grad(s, ours, leaf(delta)), reference.softmax_backward(delta, z))
    errors[13] = difference(functional.softmax_cross_entropy(ours, target).detach(), reference.cost(z, y))
    errors[14] = difference(sheet_layout(costs), reference.example_costs(z, y))
    errors[15] = difference(*torch.autograd.grad(costs.sum(), ours), reference.example_costs_gradient(z, y))
    return errors


def network_errors() -> dict[int, float]:
    """The largest difference of the recursion and of DocumentCNN, (16) to (23), from the nested loops, L = 4."""
    torch.manual_seed(0)
    model = DocumentCNN(2, (14, 13), (2, 3), (3, 2), (4,), 3, dtype=torch.float64)
    x, y, eta = random(2, 14, 13, 2), np.array([[0, 0, 1], [0.2, 0.5, 0.4]]), 0.3
    weights = [sheet_weight(layer.weight) for layer in model.layers_with_weights()]
    biases = [layer.bias.detach().numpy() for layer in model.layers_with_weights()]
    zs, xs = reference_network.forward(x, weights, biases)
    deltas, *steps = reference_network.backpropagate(zs, xs, y, weights, biases, eta)
    mean_weights, mean_biases = map(reference_network.batch_mean, steps)

    image, target = leaf(x).detach(), torch.from_numpy(y)
    layers, probabilities = backprop.forward(model, image)
    ours = backprop.per_example(model, image, target, eta)
    mean = backprop.backpropagate(model, image, target, eta)

    def largest(ours: Sequence[object], expected: Sequence[object]) -> float:
        return max(difference(a, b) for a, b in zip(ours, expected, strict=True))

    of_x = largest([*(layer.x for layer in layers), probabilities], xs)
    of_model = difference(model.probabilities(image).detach(), xs[-1])
    per_example = [np.stack([sheet_weight(step) for step in weight]) for weight in ours.weights]
    return {
        16: of_x,
        17: largest([layer.z for layer in layers], zs),
        18: max(largest(ours.biases, steps[1]), largest(mean.biases, mean_biases)),
        19: difference(ours.deltas[-1], deltas[-1]),
        20: largest(ours.deltas[:-1], deltas[:-1]),
        21: max(largest(per_example, steps[0]), largest([sheet_weight(step) for step in mean.weights], mean_weights)),
        22: of_model,
        23: max(of_model, of_x),
    }


def measured_errors() -> dict[int, float]:
    return layer_errors() | network_errors()


def without_errors(page: str) -> str:
    """The page without its measured errors, whose last bits differ from machine to machine."""
    return re.sub(r"^- measured: .*$", "- measured", page, flags=re.MULTILINE)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is stale")
    options = parser.parse_args(arguments)
    errors, page = measured_errors(), PAGE.read_text(encoding="utf-8")
    equation, error = max(errors.items(), key=lambda item: item[1])
    print(f"largest error: {error:.1e}, equation ({equation})")
    if not all(error < LIMIT for error in errors.values()):  # NaN is not below it
        print(f"an error is not below {LIMIT}", file=sys.stderr)
        return 1
    try:
        new = filled(page, errors)
    except LookupError as problem:
        print(problem, file=sys.stderr)
        return 1
    if not options.check:
        PAGE.write_text(new, encoding="utf-8")
    elif without_errors(new) != without_errors(page):
        print(f"docs/{PAGE.name} is stale: run python scripts/equations_page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
