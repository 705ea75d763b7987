"""The fake upstream and the load generator, in C and in Python with the same options, commands and output."""
