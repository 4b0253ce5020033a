INSERT INTO progress (log, partition, next) VALUES (%(log)s, %(partition)s, %(next)s)
ON CONFLICT (log, partition) DO UPDATE SET next = excluded.next, updated_at = now()
