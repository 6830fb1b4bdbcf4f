"""Reading finished runs from their directories: the report, comparing two runs, and replaying one."""
