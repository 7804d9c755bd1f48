"""What runs at the watcher's: the hub, its store, and the client a person scripts."""
