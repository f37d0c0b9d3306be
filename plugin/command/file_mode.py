"""The mode of files that safetensors writes: its own is 0600, whatever the umask is, and all others are not."""

from pathlib import Path


def give_usual_mode(folder: Path) -> None:
    """Give every safetensors file below a folder the mode that any new file there gets."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*.safetensors"):
        file.chmod(mode)
