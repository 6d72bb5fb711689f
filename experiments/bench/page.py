"""A bench's table in a page of the documentation, between two marks."""

from pathlib import Path

from experiments import files


def put_table(page: Path, shown: str, mark: str) -> None:
    """Replaces what is between two marks of a page."""
    parts = page.read_text(encoding="utf-8").split(mark)
    if len(parts) != 3:
        raise SystemExit(f"{page} must hold {mark} twice")
    parts[1] = f"\n\n{shown}\n\n"
    files.write_text(page, mark.join(parts))
