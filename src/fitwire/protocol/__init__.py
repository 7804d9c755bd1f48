"""The rules of the link, sans-IO: no socket, no thread, no clock; time is a number handed in."""
