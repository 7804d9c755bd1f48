"""A trainer's journal on disk: how it is laid out, read and delivered, by whichever process finds it."""
