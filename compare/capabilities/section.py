"""Report section of the capability matrix: the matrix, the reasons, and the counted work and memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict

from compare.capabilities import FAILS, FLOAT32, NOT_APPLICABLE, WORKS, CapabilityResult, Outcome, describe
from compare.capabilities.needs_input_grad import ALONE
from compare.capabilities.outcome import NO_NATIVE
from compare.capabilities.transforms import BACKEND
from compare.case_errors import CaseFailure
from compare.sections import Section, Table, failure_tables

DASH = "–"
VERDICT_WORDS = {WORKS: "yes", FAILS: "NO", NOT_APPLICABLE: DASH}
CELLS = {
    (WORKS, WORKS): "yes",
    (WORKS, FAILS): "ours",
    (FAILS, WORKS): "NATIVE",
    (FAILS, FAILS): "no",
    (NOT_APPLICABLE, NOT_APPLICABLE): DASH,
}
CELLS_WITHOUT_NATIVE = {WORKS: "yes", FAILS: "no", NOT_APPLICABLE: DASH}
WORK, MEMORY = "computes only what is needed", "saves only what is needed"
MAX_TABLE_WIDTH = 120  # characters in a terminal


def section(
    results: Sequence[CapabilityResult],
    *,
    device: str = "cpu",
    held: Collection[str] | None = None,
    failures: Sequence[CaseFailure] = (),
) -> Section:
    """Build the report section.

    Args:
        results: what :func:`compare.capabilities.compare_capabilities` returns.
        device: device of the run.
        held: names of the cases that must do what native does; None means all. For these, a capability that fails
            where native's does not is a failure of the report. For other cases it is shown in the tables only.
        failures: the cases that could not be run.
    """
    cases, names = (list(dict.fromkeys(getattr(row, key) for row in results)) for key in ("case", "capability"))
    lacking = [row for row in results if row.is_lacking and (held is None or row.case in held)]
    return Section(
        name="capabilities",
        title="Capabilities",
        text=_text(results, cases, names, device, held),
        parts=[
            *failure_tables(failures),
            *_matrix(results, cases, names, lacking),
            *_reasons(results, cases, lacking),
            *_counts(results),
            _descriptions(names),
        ],
        failures=[
            f"{row.case}: {row.capability}: ours fails ({row.ours.reason}); native: {row.native.verdict}"
            for row in lacking
        ],
        data={
            "device": device,
            "rows": [asdict(row) | {"lacking": row.is_lacking} for row in results],
            "errors": [{"case": failure.case} | failure.as_data() for failure in failures],
        },
        compared=sum(row.native.verdict == WORKS and (held is None or row.case in held) for row in results),
        errors=[failure.message for failure in failures],
    )


def _text(
    results: Sequence[CapabilityResult],
    cases: list[str],
    names: list[str],
    device: str,
    held: Collection[str] | None,
) -> list[str]:
    native_works = [row for row in results if row.native.verdict == WORKS]
    both_work = sum(row.ours.verdict == WORKS for row in native_works)
    only_ours = sum(row.ours.verdict == WORKS and row.native.verdict == FAILS for row in results)
    whose = "" if held is None else " of this project's cases"
    rule = f"A cell{whose} in which ours fails and native does not is a failure."
    if held is not None and not set(cases) & set(held):
        rule = "A cell in which ours fails and native does not shows what is missing; it is no failure."
    text = [
        f"{_count(len(names), 'capability', 'capabilities')} of {_count(len(cases), 'case', 'cases')} were tested on "
        f"{device}, for ours and for native, in float64 except for autocast; in float32 too where kernels can serve: "
        f"{_count(len(set(FLOAT32) & set(names)), 'capability', 'capabilities')}.",
        f"Native works in {_count(len(native_works), 'cell', 'cells')}, and ours in {both_work} of these; ours works "
        f"in {_count(only_ours, 'cell', 'cells')} where native fails.",
        rule,
    ]
    if alone := [row for row in results if not row.has_native]:
        num_cases, works = len({row.case for row in alone}), sum(row.ours.verdict == WORKS for row in alone)
        text.append(
            f"{_count(num_cases, 'case has', 'cases have')} no native function: ours works in "
            f"{_count(works, 'cell', 'cells')} there, and no cell is a failure."
        )
    if "torch.compile" in names:
        text.append(f"torch.compile ran with the backend {BACKEND}, which traces and generates no machine code.")
    return text


def _matrix(
    results: Sequence[CapabilityResult], cases: list[str], names: list[str], lacking: list[CapabilityResult]
) -> list[Table]:
    """Tables of capability by case. A capability that applies to no case is left out; the reasons name it."""
    cells = {(row.case, row.capability): _cell(row) for row in results}
    names = [name for name in names if any(cells.get((case, name), DASH) != DASH for case in cases)]
    heads = {case: case for case in cases}
    note = f"yes: both work; ours, NATIVE: only ours, only native works; no: neither works; {DASH}: not applicable."
    if not all(row.has_native for row in results):
        note += " Without a native function, yes and no are about ours."
    if len(_column_groups(cells, names, heads)) > 1:
        heads = {case: str(n) for n, case in enumerate(cases, 1)}
        note += " Cases: " + "; ".join(f"{n}: {case}" for case, n in heads.items()) + "."
    groups = _column_groups(cells, names, heads)
    return [
        Table(
            "Capabilities by case" + (f", {n} of {len(groups)}" if len(groups) > 1 else ""),
            ["capability", *(heads[case] for case in group)],
            [[name, *(cells.get((case, name), "") for case in group)] for name in names],
            note,
            {names.index(row.capability) for row in lacking if row.case in group},
        )
        for n, group in enumerate(groups, 1)
    ]


def _column_groups(cells: dict[tuple[str, str], str], names: list[str], heads: dict[str, str]) -> list[list[str]]:
    """Split the cases into groups that fit beside each other in one table."""
    groups: list[list[str]] = []
    room = 0
    for case, head in heads.items():
        width = 2 + max(len(text) for text in [head, *(cells.get((case, name), "") for name in names)])
        if width > room:
            groups.append([])
            room = MAX_TABLE_WIDTH - max((len(name) for name in names), default=0)
        groups[-1].append(case)
        room -= width
    return groups


def _cell(row: CapabilityResult) -> str:
    if not row.has_native:
        return CELLS_WITHOUT_NATIVE[row.ours.verdict]
    verdicts = (row.ours.verdict, row.native.verdict)
    return CELLS.get(verdicts) or f"{VERDICT_WORDS[verdicts[0]]} / {VERDICT_WORDS[verdicts[1]]}"


def _reasons(results: Sequence[CapabilityResult], cases: list[str], lacking: list[CapabilityResult]) -> list[Table]:
    """Table of every outcome but works, of ours and of a native there is, equal ones merged; failures come first."""
    cases_of: dict[tuple[bool, str, str, str], list[str]] = {}
    for row in results:
        if row.ours.verdict != WORKS or (row.has_native and row.native.verdict != WORKS):
            ours, native = _words(row.ours), _words(row.native) if row.has_native else NO_NATIVE.reason
            key = (row not in lacking, row.capability, ours, "the same" if ours == native else native)
            cases_of.setdefault(key, []).append(row.case)
    if not cases_of:
        return []
    table = [
        [key[1], "all" if len(cases_of[key]) == len(cases) > 1 else "; ".join(cases_of[key]), *key[2:]]
        for key in sorted(cases_of, key=lambda key: (key[0], key[2].startswith(NOT_APPLICABLE)))
    ]
    failed = range(sum(not accepted for accepted, *_ in cases_of))
    return [Table("Reasons", ["capability", "cases", "ours", "native"], table, failed=failed)]


def _words(outcome: Outcome) -> str:
    return f"{outcome.verdict}: {outcome.reason}" if outcome.reason else outcome.verdict


def _counts(results: Sequence[CapabilityResult]) -> list[Table]:
    """Table with a line for each gradient: work and memory that it takes alone, for ours and for native."""
    columns = [(capability, side) for capability in (WORK, MEMORY) for side in ("ours", "native")]
    lines: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in results:
        for side in ("ours", "native"):
            for name, fraction in getattr(row, side).counts.items():
                if name.endswith(ALONE):
                    line = lines.setdefault((row.case, name.removesuffix(ALONE)), {})
                    line[row.capability, side] = f"{100 * fraction:.1f} %"
    if not lines:
        return []
    table = [[*key, *(line.get(column, "") for column in columns)] for key, line in lines.items()]
    note = (
        "Work and memory if only this gradient is required, as a percentage of what all gradients together take. "
        "Work counts the multiplications of a product, and the elements that any other operator reads and writes. "
        "Memory is the bytes held between forward and backward, inputs included and outputs excluded."
    )
    heads = ["case", "gradient of", "work, ours", "work, native", "memory, ours", "memory, native"]
    return [Table("Cost of a single gradient", heads, table, note)]


def _descriptions(names: list[str]) -> Table:
    rows = [[name, describe(name)] for name in names]
    return Table("Definition of each capability", ["capability", "how it is tested"], rows, detail=True)


def _count(n: int, singular: str, plural: str) -> str:
    return f"{n} {singular if n == 1 else plural}"
