-- Changes what is given of a conversation. Its row may be missing as yet: turns and controls have logs of their own.
INSERT INTO conversations AS c (conversation_id, tenant, user_id, title, created_at, updated_at, metadata)
VALUES (
    %(conversation_id)s, %(tenant)s, %(user_id)s, coalesce(%(title)s::text, ''), %(at)s, %(at)s,
    coalesce(%(metadata)s::jsonb, '{}')
)
ON CONFLICT (conversation_id) DO UPDATE
SET title = coalesce(%(title)s::text, c.title),
    metadata = coalesce(%(metadata)s::jsonb, c.metadata),
    updated_at = greatest(c.updated_at, excluded.updated_at)
WHERE c.erased_at IS NULL AND (c.tenant, c.user_id) = (excluded.tenant, excluded.user_id)
