"""What a record becomes: texts, ids, labels; and what is cut where it is too long."""
