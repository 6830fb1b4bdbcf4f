"""Where rows come from: files, tables, the hub."""
