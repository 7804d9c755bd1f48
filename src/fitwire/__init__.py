"""Stream a training, live, from wherever it runs to whoever watches."""
