"""Messages between agents: the body format, flow control, dialogues, and the courier that ties them together."""
