"""Seeds of the tests that calibrate by simulation: the same in every run, or other ones with `--nightly`."""

_moved_by = 0


def move(by: int) -> None:
    """From now on every seed is another one. Before any test is collected."""
    global _moved_by
    _moved_by = by


def seed(number: int) -> int:
    """The seed that a test writes as `number`."""
    return number + _moved_by
