"""From a source's rows to records: which format reads them, what they may hold, what is wrong with them."""
