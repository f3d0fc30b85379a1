"""What a run will cost before it begins: time, memory, bytes of output and cache, bytes to fetch."""
