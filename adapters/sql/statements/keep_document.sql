-- Writes what became of a document over what is known of it from before.
INSERT INTO documents AS d
    (tenant, document_id, user_id, title, url, status, error, passages, metadata, updated_at, revision)
VALUES (%(tenant)s, %(document_id)s, %(user_id)s, %(title)s, %(url)s, %(status)s, %(error)s, %(passages)s,
    %(metadata)s, %(updated_at)s, %(revision)s)
ON CONFLICT (tenant, document_id) DO UPDATE
SET user_id = excluded.user_id, title = excluded.title, url = excluded.url, status = excluded.status,
    error = excluded.error, passages = excluded.passages, metadata = excluded.metadata,
    updated_at = excluded.updated_at, revision = excluded.revision
WHERE d.revision <= excluded.revision
