"""What is printed of a check."""

from typing import Any

from qwen_vqa.benchmarks.gpu_check.check_row import CheckRow, Result


def heading(environment: dict[str, Any]) -> str:
    """Card, machine and versions."""
    card, versions = environment["card"], environment["versions"]
    machine = environment["machine"]
    shown = ", ".join(f"{name} {found}" for name, found in versions.items())
    return f"{card}\n{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB\n{shown}"


def line(row: CheckRow, result: Result, seconds: float) -> str:
    """A row of the table."""
    numbers = ", ".join(f"{name} {_shown(value)}" for name, value in result.measured.items())
    return f"{row.part:<4s}{row.name:<36s}{result.status:<18s}{seconds:>6.0f} s  {numbers or result.message}"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
