"""Side-by-side measurements against peers, on the machine that runs them; never part of the test suite."""
