import logging

# peft opens bitsandbytes wherever it is installed, which then misses a kernel that it would download: a line in every log.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
