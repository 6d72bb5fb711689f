"""Plain-text tables: what `str()` of a report prints, with no dependency."""

from collections.abc import Sequence


def text_table(
    header: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], left: int = 1
) -> str:
    """Aligned columns under a header, a rule before each group of rows.

    Args:
      header: one title a column.
      groups: lists of rows; a row is one string a column. Empty groups vanish.
      left: how many leading columns are aligned left (names); the others are numbers.

    Returns:
      The table, without a trailing newline and without trailing blanks.
    """
    rows = [header, *(row for group in groups for row in group)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    blocks = ["\n".join(map(line, group)) for group in ([header], *groups) if group]
    return f"\n{rule}\n".join(blocks)


def percent(part: int, whole: int) -> str:
    """`part / whole` in percent; "0.00" and "100.00" only when it is exactly that.

    "-" where `whole` is 0.
    """
    if whole == 0:
        return "-"
    text = f"{100 * part / whole:.2f}"
    if text == "100.00" and part < whole:
        return ">99.99"
    if text == "0.00" and part > 0:
        return "<0.01"
    return text


def byte_size(count: int | None) -> str:
    """Decimal units: `912 B`, `30.8 kB`, `102.4 MB`; "-" for None."""
    if count is None:
        return "-"
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
