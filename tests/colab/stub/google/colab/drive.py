"""A Drive that is a folder."""

from pathlib import Path


def mount(mountpoint, force_remount=False, timeout_ms=120_000, readonly=False):
    """Make <mountpoint>/MyDrive, if it is not there yet."""
    (Path(mountpoint) / "MyDrive").mkdir(parents=True, exist_ok=True)
    print(f"Mounted at {mountpoint}")


def flush_and_unmount(timeout_ms=24 * 60 * 60 * 1000):
    """Do nothing: what is written is on the disk."""
