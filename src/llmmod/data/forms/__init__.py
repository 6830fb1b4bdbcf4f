"""What records of each kind become: texts, ids, rows of columns; and what gives way where they are too long."""
