-- Writes what was said of a turn, unless something later is there, or its conversation was erased.
INSERT INTO feedback AS f (turn_id, conversation_id, tenant, user_id, rating, comment, correction, given_at)
SELECT %(turn_id)s::uuid, %(conversation_id)s::uuid, %(tenant)s, %(user_id)s, %(rating)s, %(comment)s, %(correction)s,
    %(given_at)s::timestamptz
WHERE NOT EXISTS (
    SELECT FROM conversations c WHERE c.conversation_id = %(conversation_id)s::uuid AND c.erased_at IS NOT NULL
)
ON CONFLICT (turn_id) DO UPDATE
SET rating = excluded.rating, comment = excluded.comment, correction = excluded.correction, given_at = excluded.given_at
WHERE f.given_at <= excluded.given_at
