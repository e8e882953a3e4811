"""Tools that need a checkout of the repository. The wheel does not include them."""
