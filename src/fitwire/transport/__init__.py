"""The only sockets and the only threads: ZeroMQ for real, memory for tests."""
