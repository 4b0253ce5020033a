-- Deletes what was said in a conversation. Its row stays and says that it is gone, so that a turn that ends later is not
-- written; what its turns cost stays in usage.
WITH erased AS (
    INSERT INTO conversations AS c (conversation_id, tenant, user_id, created_at, updated_at, erased_at)
    VALUES (%(conversation_id)s, %(tenant)s, %(user_id)s, %(at)s, %(at)s, %(at)s)
    ON CONFLICT (conversation_id) DO UPDATE
    SET title = '', metadata = '{}', updated_at = excluded.updated_at, erased_at = excluded.erased_at
    WHERE c.erased_at IS NULL AND (c.tenant, c.user_id) = (excluded.tenant, excluded.user_id)
    RETURNING c.conversation_id
), gone AS (
    DELETE FROM turns USING erased WHERE turns.conversation_id = erased.conversation_id
    RETURNING turns.turn_id, turns.ended_at
), cited AS (
    DELETE FROM citations USING gone
    WHERE citations.turn_id = gone.turn_id AND citations.ended_at = gone.ended_at
)
DELETE FROM feedback USING erased WHERE feedback.conversation_id = erased.conversation_id
