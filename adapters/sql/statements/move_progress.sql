-- Moves the progress of a partition over a span, and locks it until the transaction ends. Nothing is moved where it is
-- not at the span's start.
UPDATE progress SET next = %(stop)s, updated_at = now()
WHERE log = %(log)s AND partition = %(partition)s AND next = %(start)s
