"""Everything that can go wrong, done to real processes, against a ledger of what ``log`` returned from."""
