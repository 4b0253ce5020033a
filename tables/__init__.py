"""What we remember: RocksDB tables, each with its functions; written by agents only."""
