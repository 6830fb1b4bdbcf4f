"""Where rows come from, which format reads them, and the records they become."""
