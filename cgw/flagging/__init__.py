"""Flagging: prompts that the operator wants to see, or to refuse (the reference's §9.2)."""
