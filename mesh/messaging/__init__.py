"""Messages between agents: the body format, flow control, channels, and the courier that ties them together."""
