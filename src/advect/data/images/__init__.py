"""Images: files, archives, shards and upstream data sets."""
