"""Which models keep the examples of one row apart, and how they are told to."""
