"""How long things take, in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as a person says them: "0.4 seconds", "12 seconds", "3 minutes", "2 hours 10 minutes"."""
    if seconds < 10:
        return f"{seconds:.2g} seconds"
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} minutes"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} hours" + (f" {minutes} minutes" if minutes and hours < 48 else "")
