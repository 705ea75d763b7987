"""What holds while Redis is away: limits counted in this process, and the charges that Redis gets afterwards."""
