-- The progress of a partition of which nothing was written; locks it also where it is there.
INSERT INTO progress (log, partition, next) VALUES (%(log)s, %(partition)s, 0)
ON CONFLICT (log, partition) DO UPDATE SET next = progress.next
