-- A user's conversations from a place in their list on, the latest active first, without those that are known already.
SELECT conversation_id::text, title, created_at, updated_at, metadata
FROM conversations
WHERE tenant = %(tenant)s AND user_id = %(user)s AND erased_at IS NULL
    AND (updated_at, conversation_id) < (%(at)s::timestamptz, %(before)s::uuid)
    AND conversation_id <> ALL(%(known)s::uuid[])
ORDER BY updated_at DESC, conversation_id DESC
LIMIT %(limit)s
