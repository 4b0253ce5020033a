-- A conversation, if it is this user's.
SELECT conversation_id::text, title, created_at, updated_at, metadata
FROM conversations
WHERE conversation_id = %(conversation_id)s::uuid AND tenant = %(tenant)s AND user_id = %(user)s AND erased_at IS NULL
