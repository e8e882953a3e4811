"""Tools that need a checkout of the repository: they are not part of the wheel."""
