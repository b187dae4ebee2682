"""The capability matrix as a section of the report: the matrix, the reasons, and what was counted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict

from compare.capabilities import FAILS, NOT_APPLICABLE, WORKS, Capability, Outcome, how
from compare.capabilities.economy import ALONE
from compare.capabilities.transforms import BACKEND
from compare.sections import Section, Table

NEITHER = "–"
WORDS = {WORKS: "yes", FAILS: "NO", NOT_APPLICABLE: NEITHER}
CELLS = {
    (WORKS, WORKS): "yes",
    (WORKS, FAILS): "ours",
    (FAILS, WORKS): "NATIVE",
    (FAILS, FAILS): "no",
    (NOT_APPLICABLE, NOT_APPLICABLE): NEITHER,
}
WORK, MEMORY = "computes only what is asked", "keeps only what is needed"
WIDEST = 120  # characters of a table in a terminal


def section(rows: Sequence[Capability], *, device: str = "cpu", held: Collection[str] | None = None) -> Section:
    """What :func:`compare.capabilities.compare_capabilities` found.

    Args:
        rows: its rows.
        device: where they were run.
        held: the names of the cases that must do what native does; None for all. A cell of theirs in which ours fails
            and native does not is a failure; of other cases it is shown and no more.
    """
    cases, names = (list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("case", "capability"))
    lacking = [row for row in rows if row.lacking and (held is None or row.case in held)]
    return Section(
        name="capabilities",
        title="Capabilities",
        text=_text(rows, cases, names, device, held),
        parts=[*_matrix(rows, cases, names, lacking), *_reasons(rows, cases, lacking), *_counts(rows), _ways(names)],
        failures=[
            f"{row.case}: {row.capability}: ours fails ({row.ours.reason}); native: {row.native.verdict}"
            for row in lacking
        ],
        data={"device": device, "rows": [asdict(row) | {"lacking": row.lacking} for row in rows]},
        compared=sum(row.native.verdict == WORKS and (held is None or row.case in held) for row in rows),
    )


def _text(
    rows: Sequence[Capability], cases: list[str], names: list[str], device: str, held: Collection[str] | None
) -> list[str]:
    natively = [row for row in rows if row.native.verdict == WORKS]
    both = sum(row.ours.verdict == WORKS for row in natively)
    more = sum(row.ours.verdict == WORKS and row.native.verdict == FAILS for row in rows)
    whose = "" if held is None else " of this project's cases"
    text = [
        f"{_number(len(names), 'capability', 'capabilities')} of {_number(len(cases), 'case', 'cases')}: each was "
        f"run on {device} for ours and for native, in float64 but for autocast.",
        f"Native works in {_number(len(natively), 'cell', 'cells')}, and ours in {both} of these; ours works in "
        f"{_number(more, 'cell', 'cells')} where native fails.",
        f"A cell{whose} in which ours fails and native does not is a failure.",
    ]
    if "torch.compile" in names:
        text.append(f"torch.compile was run with the backend {BACKEND}, which traces, and generates no machine code.")
    return text


def _matrix(rows: Sequence[Capability], cases: list[str], names: list[str], lacking: list[Capability]) -> list[Table]:
    """Capabilities that are not applicable to any case are left out: the reasons name them."""
    cells = {(row.case, row.capability): _cell(row) for row in rows}
    names = [name for name in names if any(cells.get((case, name), NEITHER) != NEITHER for case in cases)]
    heads = {case: case for case in cases}
    note = f"yes: both work; ours, NATIVE: only ours, only native; no: neither; {NEITHER}: not applicable."
    if len(_side_by_side(cells, names, heads)) > 1:
        heads = {case: str(n) for n, case in enumerate(cases, 1)}
        note += " The cases: " + "; ".join(f"{n}: {case}" for case, n in heads.items()) + "."
    groups = _side_by_side(cells, names, heads)
    return [
        Table(
            "What works" + (f", {n} of {len(groups)}" if len(groups) > 1 else ""),
            ["capability", *(heads[case] for case in group)],
            [[name, *(cells.get((case, name), "") for case in group)] for name in names],
            note,
            {names.index(row.capability) for row in lacking if row.case in group},
        )
        for n, group in enumerate(groups, 1)
    ]


def _side_by_side(cells: dict[tuple[str, str], str], names: list[str], heads: dict[str, str]) -> list[list[str]]:
    """The cases in groups: as many columns as fit."""
    groups: list[list[str]] = []
    room = 0
    for case, head in heads.items():
        width = 2 + max(len(text) for text in [head, *(cells.get((case, name), "") for name in names)])
        if width > room:
            groups.append([])
            room = WIDEST - max((len(name) for name in names), default=0)
        groups[-1].append(case)
        room -= width
    return groups


def _cell(row: Capability) -> str:
    verdicts = (row.ours.verdict, row.native.verdict)
    return CELLS.get(verdicts) or f"{WORDS[verdicts[0]]} / {WORDS[verdicts[1]]}"


def _reasons(rows: Sequence[Capability], cases: list[str], lacking: list[Capability]) -> list[Table]:
    """Everything but works / works, alike cells together; failures first."""
    alike: dict[tuple[bool, str, str, str], list[str]] = {}
    for row in rows:
        if (row.ours.verdict, row.native.verdict) != (WORKS, WORKS):
            words = _words(row.ours), _words(row.native)
            key = (row not in lacking, row.capability, words[0], "the same" if words[0] == words[1] else words[1])
            alike.setdefault(key, []).append(row.case)
    if not alike:
        return []
    table = [
        [key[1], "all" if len(alike[key]) == len(cases) > 1 else "; ".join(alike[key]), *key[2:]]
        for key in sorted(alike, key=lambda key: (key[0], key[2].startswith(NOT_APPLICABLE)))
    ]
    failed = range(sum(not fine for fine, *_ in alike))
    return [Table("Why not", ["capability", "cases", "ours", "native"], table, failed=failed)]


def _words(outcome: Outcome) -> str:
    return f"{outcome.verdict}: {outcome.reason}" if outcome.reason else outcome.verdict


def _counts(rows: Sequence[Capability]) -> list[Table]:
    """A line for each gradient: what it alone takes, of work and of memory, for ours and for native."""
    columns = [(capability, side) for capability in (WORK, MEMORY) for side in ("ours", "native")]
    lines: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        for side in ("ours", "native"):
            for what, share in getattr(row, side).counts.items():
                if what.endswith(ALONE):
                    line = lines.setdefault((row.case, what.removesuffix(ALONE)), {})
                    line[row.capability, side] = f"{100 * share:.1f} %"
    if not lines:
        return []
    table = [[*key, *(line.get(column, "") for column in columns)] for key, line in lines.items()]
    note = (
        "The share of what all gradients together take, where this one alone is asked for. Work is counted by "
        "operator: a product by its multiplications, anything else by the numbers it reads and writes. Memory is "
        "what is held between forward and backward, in bytes, inputs included and outputs not."
    )
    heads = ["case", "gradient of", "work, ours", "work, native", "memory, ours", "memory, native"]
    return [Table("What one gradient alone takes", heads, table, note)]


def _ways(names: list[str]) -> Table:
    return Table("How each was run", ["capability", "how"], [[name, how(name)] for name in names], detail=True)


def _number(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
