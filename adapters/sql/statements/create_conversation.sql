-- Begins a conversation, or gives one that its first turn has begun what it was created with. Nothing brings back what
-- was erased, and only its own user changes it.
INSERT INTO conversations AS c (conversation_id, tenant, user_id, title, created_at, updated_at, metadata)
VALUES (
    %(conversation_id)s, %(tenant)s, %(user_id)s, coalesce(%(title)s::text, ''), %(at)s, %(at)s,
    coalesce(%(metadata)s::jsonb, '{}')
)
ON CONFLICT (conversation_id) DO UPDATE
SET title = CASE excluded.title WHEN '' THEN c.title ELSE excluded.title END,
    metadata = CASE excluded.metadata WHEN '{}' THEN c.metadata ELSE excluded.metadata END,
    created_at = least(c.created_at, excluded.created_at)
WHERE c.erased_at IS NULL AND (c.tenant, c.user_id) = (excluded.tenant, excluded.user_id)
