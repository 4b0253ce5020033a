-- Tells conversations that are there of turns that ended in them.
UPDATE conversations c
SET title = CASE c.title WHEN '' THEN new.title ELSE c.title END,
    created_at = least(c.created_at, new.created_at),
    updated_at = greatest(c.updated_at, new.updated_at)
FROM unnest(%(ids)b::uuid[], %(titles)b::text[], %(created)b::timestamptz[], %(updated)b::timestamptz[])
    AS new (conversation_id, title, created_at, updated_at)
WHERE c.conversation_id = new.conversation_id
