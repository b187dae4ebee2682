"""Words for an option or number of an operation that has another value than it should."""

from __future__ import annotations

from typing import Any

from torch.utils._pytree import tree_flatten

TRANSPOSES = ("adjoint", "transpose", "trans", "conjugate_transpose")
# Other truth values of PyTorch's operations: what is used if the option is True, and if it is False.
USED = {
    "upper": ("the upper triangle of the matrix", "the lower triangle of the matrix"),
    "left": ("the solution of A X = B", "the solution of X A = B"),
    "unitriangular": ("a diagonal of ones", "the matrix's own diagonal"),
    "largest": ("the largest elements", "the smallest elements"),
    "descending": ("the descending order", "the ascending order"),
    "keepdim": ("the kept dimension", "the tensor without the dimension"),
    "accumulate": ("the sum of the elements of one place", "the last of the elements of one place"),
}


def show(value: Any) -> str:
    """The value as in code: words in quotation marks."""
    return repr(value) if isinstance(value, str) else str(value)


def changed_option(option: str, value: Any, instead: Any, operation: str) -> tuple[str, str]:
    """Kind and words of ``instead`` in the place of ``value``.

    Args:
        option: name of the argument; "" if it is unknown.
        operation: its name; "" if the sentence has it already.
    """
    where = f" in {operation}" if operation else ""
    if isinstance(value, bool) and option in TRANSPOSES:
        if value:
            return (
                "not transposed",
                f"the matrix is not transposed{where} ({option} is False instead of True)",
            )
        return "transposed", f"the matrix is transposed{where}, and should not be ({option} is True)"
    if isinstance(value, bool) and option in USED:
        used, right = USED[option][:: 1 if instead else -1]
        return "another operand", f"{used} is used instead of {right}{where} ({option} is {instead})"
    if isinstance(value, bool) and option:
        return "another operand", f"{option} is {instead} instead of {value}{where}"
    if option == "exponent":
        return "another operand", f"the exponent is {instead:g} instead of {value:g}{where}"
    return "another operand", f"{show(instead)} is used instead of {show(value)}{where}"


def option_names(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, str]:
    """Names of the keyword arguments, by their places among all flattened arguments."""
    names, place = {}, len(tree_flatten(args)[0])
    for name, value in kwargs.items():
        names[place] = name
        place += len(tree_flatten(value)[0])
    return names


def schema_names(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int, str]:
    """Names of the arguments of an elementary operation, by their places among all flattened arguments."""
    names, place = {}, 0
    for argument, value in zip(function._schema.arguments, args, strict=False):
        names[place] = argument.name
        place += len(tree_flatten(value)[0])
    return names | option_names(args, kwargs)
