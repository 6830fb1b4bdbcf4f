"""From records to examples: texts, ids, labels; and shortening examples that are too long."""
